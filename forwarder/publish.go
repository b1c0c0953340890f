package forwarder

import (
	"context"
	"maps"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/meta"
)

// publish takes batches and sends them, one call of the publisher at a time; several run side by side.
func (s *session) publish(ctx context.Context) error {
	for {
		batch, wait := s.take(time.Now())
		if batch == nil {
			if !s.publishWork.wait(ctx, wait) {
				return nil
			}
			continue
		}
		s.publishWork.set() // there may be more for the next worker
		s.send(ctx, batch)
		s.dest.leave()
		s.moved()
	}
}

// take returns the next batch, or how long to wait for one (0: until something happens).
func (s *session) take(now time.Time) ([]*item, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || !s.lease.valid(now) {
		return nil, 0
	}
	open, probe, after, wait := s.dest.gate(now)
	if !open {
		return nil, wait
	}
	var batch []*item
	if probe {
		batch = s.win.probe(after)
	} else {
		batch = s.win.next(s.cfg.BatchRows, s.cfg.BatchBytes)
	}
	if batch == nil {
		s.dest.leave()
	}
	return batch, 0
}

// send publishes a batch and files what came of it.
func (s *session) send(ctx context.Context, batch []*item) {
	if len(batch) == 1 && !s.ready(ctx, batch[0]) {
		return
	}
	if !s.lease.valid(time.Now()) {
		s.putBack(batch)
		return
	}
	topics, msgs := make([]string, len(batch)), make([]*message.Message, len(batch))
	call, cancel := context.WithTimeout(s.publishing, s.cfg.PublishTimeout)
	defer cancel()
	for i, it := range batch {
		if it.attempt == 0 {
			it.attempt = 1
		}
		topics[i], msgs[i] = it.row.Topic, outgoing(call, it)
	}
	errs := s.dest.publish(call, s.cfg.Lease/4, s.moved, topics, msgs)
	fault.Point("forwarder.after_publish")
	s.file(ctx, batch, errs)
	fault.Point("forwarder.after_confirm")
}

// outgoing is the message as the broker gets it: the id and payload of the row, its metadata, and where
// it comes from.
func outgoing(ctx context.Context, it *item) *message.Message {
	msg := message.NewMessage(it.row.ID, it.row.Payload)
	msg.Metadata = make(message.Metadata, len(it.row.Metadata)+4)
	maps.Copy(msg.Metadata, it.row.Metadata)
	msg.Metadata[meta.Position] = strconv.FormatInt(it.row.Pos, 10)
	msg.Metadata[meta.Lane] = strconv.Itoa(it.row.Lane)
	msg.Metadata[meta.Epoch] = strconv.FormatInt(it.lane.grant.Epoch, 10)
	msg.Metadata[meta.Attempt] = strconv.Itoa(it.attempt)
	msg.SetContext(ctx)
	return msg
}

// file notes the answers.
func (s *session) file(ctx context.Context, batch []*item, errs []error) {
	s.mu.Lock()
	verdicts, changed := s.dest.judge(batch, errs, time.Now())
	sent := 0
	for i, it := range batch {
		switch v := verdicts[i]; {
		case v.kind == delivered:
			sent++
			s.win.confirm(it)
		case v.kind == unknown:
			s.win.again(it)
		case it.attempt >= s.cfg.MaxAttempts:
			s.win.refuse(it, taskPark, v.reason, v.text)
		default:
			s.win.refuse(it, taskRefuse, v.reason, v.text)
		}
	}
	s.mu.Unlock()
	s.f.counts.published.Add(int64(sent))
	if !changed {
		return
	}
	if failures, err, _ := s.dest.failing(); failures > 0 {
		s.log.WarnContext(ctx, "destination does not answer, trying on", "destination", s.dest.name, "error", bounded(err.Error(), 500))
	} else {
		s.log.InfoContext(ctx, "destination answers", "destination", s.dest.name)
	}
}

// ready prepares a message that goes alone, and reports whether it may be published: a second attempt
// is written down before it is made, so that attempts are exact however many replicas die.
func (s *session) ready(ctx context.Context, it *item) bool {
	if it.row.Err != nil {
		it.attempt = it.counted + 1
		s.set(it, taskPark, "encoding", bounded(it.row.Err.Error(), 500))
		return false
	}
	if it.attempt == 0 && it.counted >= s.cfg.MaxAttempts {
		it.attempt = it.counted
		if it.careful() {
			s.set(it, taskPark, "attempts_exhausted", "the outcome of the last attempt is not known: its forwarder died")
			return false
		}
	}
	if it.attempt == 0 {
		it.attempt = it.counted + 1
	}
	if it.attempt <= it.counted || it.counted == 0 && !it.careful() {
		return true
	}
	call, cancel := context.WithTimeout(ctx, s.storeTimeout())
	defer cancel()
	ok, err := s.store.Attempt(call, it.lane.grant, it.row.Ref, it.attempt)
	if err != nil {
		s.putBack([]*item{it})
		s.log.WarnContext(ctx, "attempt not written, trying on", "error", err)
		sleep(ctx, storeBackoff.Base)
		return false
	}
	if !ok {
		s.mu.Lock()
		if s.win.land(it) {
			s.win.remove(it)
			s.win.hungry = true
			s.win.desk = append(s.win.desk, task{kind: taskReload, lane: it.lane})
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
	s.win.refuse(it, kind, reason, text)
}

func (s *session) putBack(batch []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range batch {
		s.win.again(it)
	}
}
