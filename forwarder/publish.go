package forwarder

import (
	"context"
	"maps"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/meta"
)

// publish takes batches and sends them, one call of the publisher at a time; several run side by side.
func (p *pipeline) publish(ctx context.Context) error {
	for ctx.Err() == nil { // what is left would be tried again without a pause
		batch, wait := p.take(time.Now())
		if batch == nil {
			if !p.publishWork.wait(ctx, wait) {
				return nil
			}
			continue
		}
		p.publishWork.set() // there may be more for the next worker
		p.send(ctx, batch)
		p.dest.leave()
		p.s.moved()
	}
	return nil
}

// take returns the next batch, or how long to wait for one (0: until something happens).
func (p *pipeline) take(now time.Time) ([]*item, time.Duration) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || !s.lease.valid(now) {
		return nil, 0
	}
	pass, wait := p.dest.gate(now)
	if pass == closed {
		return nil, wait
	}
	var batch []*item
	switch pass {
	case oneOnly:
		batch = p.win.sample(p.dest.lastProbe(), 1, p.cfg.BatchBytes)
	case together:
		batch = p.win.sample(p.dest.lastProbe(), p.cfg.BatchRows, p.cfg.BatchBytes)
	default:
		batch = p.win.next(p.cfg.BatchRows, p.cfg.BatchBytes, false)
	}
	if batch == nil {
		p.dest.leave()
	}
	return batch, 0
}

// send publishes a batch and files what came of it.
func (p *pipeline) send(ctx context.Context, batch []*item) {
	s := p.s
	if batch = p.mark(ctx, batch); len(batch) == 0 {
		return
	}
	if len(batch) == 1 && !p.ready(ctx, batch[0]) {
		return
	}
	if !s.lease.valid(time.Now()) {
		s.putBack(batch)
		return
	}
	for _, it := range batch {
		it.begin(p.cfg.MaxAttempts)
	}
	topics, msgs := outgoing(batch, len(s.f.told) > 0)
	call, cancel := context.WithTimeout(s.publishing, p.cfg.PublishTimeout)
	defer cancel()
	told := p.describe(batch, msgs)
	call = s.f.told.publish(call, told)
	for _, msg := range msgs {
		msg.SetContext(call)
	}
	errs := p.dest.publish(call, s.cfg.Lease/4, s.moved, topics, msgs)
	fault.Point("forwarder.after_publish")
	answers := p.file(ctx, batch, errs)
	fault.Point("forwarder.after_confirm")
	s.f.told.published(call, told, answers)
}

// outgoing are the messages as the broker gets them: id and payload of the row, its metadata, and where each
// comes from. They are allocated together, and without what message.NewMessage makes for an acknowledgement. The first
// attempt is made of the row's own metadata, unless an observer may change it; others, while the publisher of an earlier
// one may yet be reading, of a copy.
func outgoing(batch []*item, observed bool) ([]string, []*message.Message) {
	topics, msgs := make([]string, len(batch)), make([]*message.Message, len(batch))
	all := make([]message.Message, len(batch))
	for i, it := range batch {
		topics[i], msgs[i] = it.row.Topic, &all[i]
		metadata := it.row.Metadata
		if observed || it.handed || metadata == nil {
			metadata = make(message.Metadata, len(it.row.Metadata)+1)
			maps.Copy(metadata, it.row.Metadata)
		}
		metadata[meta.Place], it.handed = it.place(), true
		all[i].UUID, all[i].Payload, all[i].Metadata = it.row.ID, it.row.Payload, metadata
	}
	return topics, msgs
}

// place is what meta.Place says of this attempt.
func (it *item) place() string {
	b := make([]byte, 0, 64)
	for _, n := range [...]int64{int64(it.row.Lane), it.lane.grant.Epoch, it.row.Pos} {
		b = append(strconv.AppendInt(b, n, 10), '.')
	}
	return string(strconv.AppendInt(b, int64(it.attempt), 10))
}

// file notes the answers.
func (p *pipeline) file(ctx context.Context, batch []*item, errs []error) []Answer {
	s := p.s
	s.mu.Lock()
	verdicts, changed := p.dest.judge(batch, errs, time.Now())
	for i, it := range batch {
		switch v := verdicts[i]; v.kind {
		case delivered:
			p.win.confirm(it)
		case unknown:
			p.win.again(it)
		case deferred:
			p.win.refuse(it, taskDefer, v.reason, v.text)
		default:
			kind := taskRefuse
			if it.attempt >= p.cfg.MaxAttempts {
				kind = taskPark
			}
			p.win.refuse(it, kind, v.reason, v.text)
		}
	}
	s.mu.Unlock()
	p.dest.tally.answered(batch, verdicts, time.Now())
	if changed {
		p.announce(ctx)
	}
	return s.f.told.answers(verdicts, errs)
}

// announce tells that the destination has begun or ceased to answer.
func (p *pipeline) announce(ctx context.Context) {
	state := p.dest.state()
	if state.err != nil {
		p.s.log.WarnContext(ctx, "destination does not answer, trying on", "destination", p.dest.name, "error", bounded(state.err.Error(), 500))
	} else {
		p.s.log.InfoContext(ctx, "destination answers", "destination", p.dest.name)
	}
	p.s.f.told.destination(ctx, p.dest.name, state.err)
}

// ready prepares a message that goes alone, and reports whether it may be published: a second attempt
// is written down before it is made, so that attempts are exact however many replicas die. While everything
// is refused by the destination, its refusals are not to count.
func (p *pipeline) ready(ctx context.Context, it *item) bool {
	s := p.s
	s.mu.Lock()
	careful := it.careful() // a settle may end the care at this moment
	s.mu.Unlock()
	if it.row.Err != nil {
		it.attempt = it.counted + 1
		s.set(it, taskPark, "encoding", bounded(it.row.Err.Error(), 500))
		return false
	}
	if it.attempt == 0 && it.counted >= p.cfg.MaxAttempts && careful {
		it.attempt = it.counted
		s.set(it, taskPark, "attempts_exhausted", "the outcome of the last attempt is not known: its forwarder died")
		return false
	}
	it.begin(p.cfg.MaxAttempts)
	if it.attempt <= it.counted || !careful && (it.counted == 0 || p.dest.suspected()) {
		return true
	}
	call, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	ok, err := s.store.Attempt(call, it.lane.grant, it.row.Ref, it.attempt)
	if err != nil {
		s.putBack([]*item{it})
		s.log.WarnContext(ctx, "attempt not written, trying on", "error", err)
		backoff.Sleep(ctx, storeBackoff.Base)
		return false
	}
	if !ok {
		s.mu.Lock()
		if p.win.land(it) {
			p.win.reread(it)
			p.win.desk = append(p.win.desk, task{kind: taskReload, lane: it.lane})
		}
		s.mu.Unlock()
		return false
	}
	it.counted = it.attempt
	return true
}

func (s *session) set(it *item, kind taskKind, reason, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it.lane.win.refuse(it, kind, reason, text)
}

func (s *session) putBack(batch []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range batch {
		it.lane.win.again(it)
	}
}
