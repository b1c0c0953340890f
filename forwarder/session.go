package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace/outbox"
)

// session is one registration of this replica: from joining to leaving, or to the moment when the
// database says that it is gone. Nothing of what it knows is taken over into the next one.
type session struct {
	f       *Forwarder
	cfg     Config
	store   outbox.Store
	dest    *destination
	wake    waker
	log     *slog.Logger
	replica string
	lease   *lease

	publishing     context.Context // of the calls of the publisher; ends before the session does
	stopPublishing context.CancelFunc

	readWork, publishWork, settleWork, clerkWork, promoteWork, laneWork, drained signal

	mu          sync.Mutex // guards what follows
	win         *window
	stopping    bool
	settleFails time.Time // since when; zero if it does not
	readErr     error
	unanswered  bool // publishes were given up when stopping
}

var (
	// errStopped ends a session whose Run was told to stop.
	errStopped = errors.New("forwarder: stopped")
	// errStuck ends a session whose publisher does not return.
	errStuck = errors.New("forwarder: the publisher is stuck")
)

func (f *Forwarder) newSession(wake waker) *session {
	id := f.cfg.ID + "-" + uuid.NewString()[:13]
	return &session{
		f: f, cfg: f.cfg, store: f.src.Store(), dest: f.dest, wake: wake,
		log: f.cfg.Logger.With("replica", id), replica: id,
		lease:    &lease{length: f.cfg.Lease},
		readWork: newSignal(), publishWork: newSignal(), settleWork: newSignal(), clerkWork: newSignal(),
		promoteWork: newSignal(), laneWork: newSignal(), drained: newSignal(),
		win: newWindow(f.cfg, f.ordered),
	}
}

// run joins, works until ctx ends or the registration is lost, and leaves. It returns errStopped when
// it was stopped and nothing is left unresolved.
func (s *session) run(ctx context.Context) error {
	if err := s.join(ctx); err != nil {
		return errStopped // ctx ended before anything was held
	}
	// What is in hand when ctx ends is finished, within bounds that drain sets.
	detached := context.WithoutCancel(ctx)
	g, life := errgroup.WithContext(detached)
	s.publishing, s.stopPublishing = context.WithCancel(life)
	defer s.stopPublishing()

	work := []func(context.Context) error{s.keepLease, s.keepLanes, s.read, s.promote, s.settle, s.clerk, s.watch}
	for range s.cfg.Batches {
		work = append(work, s.publish)
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
		leave, cancel := context.WithTimeout(detached, s.storeTimeout())
		defer cancel()
		if err := s.store.Leave(leave, s.replica); err != nil {
			s.log.WarnContext(ctx, "lanes not released, they are free when the lease has ended", "error", err)
		}
	}
	return err
}

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
		if !sleep(ctx, storeBackoff.Delay(tries)) {
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
	w := s.win
	hungry, settling, desk := w.hungry, len(w.settling) > 0, len(w.desk) > 0
	s.mu.Unlock()
	if hungry {
		s.readWork.set()
	}
	if settling {
		s.settleWork.set()
	}
	if desk {
		s.clerkWork.set()
	}
	s.publishWork.set()
	s.laneWork.set()
	s.drained.set()
}

// watch gives the lanes up when the publisher has not come back for so long that another replica should
// try: the lease is not renewed any more and runs out.
func (s *session) watch(ctx context.Context) error {
	for sleep(ctx, s.cfg.PublishTimeout/4) {
		if _, _, stuck := s.dest.failing(); !stuck.IsZero() && time.Since(stuck) > 2*s.cfg.PublishTimeout {
			return errStuck
		}
	}
	return nil
}
