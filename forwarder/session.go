package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/outbox"
)

// session is one registration of this replica: from joining to leaving, or to the moment when the
// database says that it is gone. Nothing of what it knows is taken over into the next one.
//
// It has what all destinations share: the lease, the lanes, the look-out for messages, and all that writes to
// the outbox. What a destination has of its own is in its pipeline.
type session struct {
	f       *Forwarder
	cfg     Config
	store   outbox.Store
	wake    waker
	log     *slog.Logger
	replica string
	lease   *lease
	pipes   []*pipeline
	look    *lookout

	publishing     context.Context // of the calls of publishers; ends before the session does
	stopPublishing context.CancelFunc

	settleWork, clerkWork, promoteWork, laneWork, drained signal

	mu          sync.Mutex // guards what follows, and the windows
	stopping    bool
	settleFails time.Time        // since when; zero if it does not
	readErrs    map[string]error // by destination, "" included, and of the look-out
	unanswered  bool             // publishes were given up when stopping

	retreat retreat // of keepLanes
}

// errStopped ends a session whose Run was told to stop.
var errStopped = errors.New("forwarder: stopped")

func (f *Forwarder) newSession(wake waker) *session {
	id := f.cfg.ID + "-" + uuid.NewString()[:13]
	s := &session{
		f: f, cfg: f.cfg, store: f.src.Store(), wake: wake,
		log: f.cfg.Logger.With("replica", id), replica: id,
		lease: &lease{length: f.cfg.Lease}, look: newLookout(),
		settleWork: newSignal(), clerkWork: newSignal(),
		promoteWork: newSignal(), laneWork: newSignal(), drained: newSignal(),
		readErrs: map[string]error{},
	}
	out := &fragile{}
	for _, d := range f.dests {
		s.pipes = append(s.pipes, newPipeline(s, d, out))
	}
	return s
}

// run joins, works until ctx ends or the registration is lost, and leaves. It returns errStopped when
// it was stopped and nothing is left unresolved.
func (s *session) run(ctx context.Context) error {
	if err := s.join(ctx); err != nil {
		s.depart(ctx, time.Second) // the last try may have succeeded
		return errStopped          // ctx ended before anything was held
	}
	// What is in hand when ctx ends is finished, within bounds that drain sets.
	detached := context.WithoutCancel(ctx)
	g, life := errgroup.WithContext(detached)
	s.publishing, s.stopPublishing = context.WithCancel(life)
	defer s.stopPublishing()

	work := []func(context.Context) error{s.keepLease, s.keepLanes, s.lookOut, s.promote, s.settle, s.clerk}
	for _, p := range s.pipes {
		work = append(work, p.read, p.recover)
		for range p.cfg.Batches {
			work = append(work, p.publish)
		}
	}
	for _, do := range work {
		g.Go(func() error { return do(life) })
	}
	g.Go(func() error {
		select {
		case <-life.Done():
			return nil
		case <-ctx.Done():
		}
		return s.drain(life)
	})
	err := g.Wait()
	if errors.Is(err, errStopped) {
		s.depart(ctx, s.storeTimeout())
	}
	return err
}

// departures is how often a database that refuses the end of a registration is asked: a deadlock ends well the
// next time, and one that is down is not waited for.
const departures = 4

// depart ends the registration and releases the lanes, also when ctx has ended.
func (s *session) depart(ctx context.Context, within time.Duration) {
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	for tries := 1; ; tries++ {
		err := s.store.Leave(leave, s.replica)
		if err == nil {
			return
		}
		if tries == departures || !backoff.Sleep(leave, departBackoff.Delay(tries)) {
			s.log.WarnContext(ctx, "lanes not released, they are free when the lease has ended", "error", err)
			return
		}
	}
}

var departBackoff = backoff.Policy{Base: 50 * time.Millisecond, Max: 200 * time.Millisecond}

// join registers, however long the database cannot be reached. Each try has a name of its own: one
// whose answer was lost may have succeeded.
func (s *session) join(ctx context.Context) error {
	for tries := 1; ; tries++ {
		sent := time.Now()
		call, cancel := context.WithTimeout(ctx, s.storeTimeout())
		err := s.store.Join(call, s.replica, s.cfg.Lease)
		cancel()
		if err == nil {
			s.lease.renewed(sent)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if tries == 1 {
			s.log.WarnContext(ctx, "not registered, trying on", "error", err)
		}
		if !backoff.Sleep(ctx, storeBackoff.Delay(tries)) {
			return ctx.Err()
		}
		s.replica = s.cfg.ID + "-" + uuid.NewString()[:13]
		s.log = s.cfg.Logger.With("replica", s.replica)
	}
}

// storeTimeout bounds one call of the store.
func (s *session) storeTimeout() time.Duration { return max(5*time.Second, s.cfg.Lease) }

// moved tells everybody that things may have changed.
func (s *session) moved() {
	s.mu.Lock()
	settling, desk := false, false
	for _, p := range s.pipes {
		settling = settling || len(p.win.settling) > 0
		desk = desk || len(p.win.desk) > 0
		if p.win.hungry {
			p.readWork.set()
		}
		p.publishWork.set()
	}
	s.mu.Unlock()
	if settling {
		s.settleWork.set()
	}
	if desk {
		s.clerkWork.set()
	}
	s.laneWork.set()
	s.drained.set()
}

// unresolved counts what brokers may have and the store does not know of. Called with the lock held.
func (s *session) unresolved() (flying, pending int) {
	for _, p := range s.pipes {
		flying += p.win.flying
		pending += p.win.unresolved()
	}
	return flying, pending
}
