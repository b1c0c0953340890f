package model_test

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

// store is the outbox as one forwarder sees it. That a reply is lost is decided here; everything else at the gate of
// the outbox itself, step by step.
type store struct {
	outbox.Store
	life *life
}

// gate is asked before each step of the outbox.
func (w *world) gate(ctx context.Context, op string) error {
	l := lifeOf(ctx)
	if l == nil {
		return nil // the test itself
	}
	if err := l.asks(ctx, op); err != nil {
		return err
	}
	if w.away(w.business.name) {
		return errAway
	}
	return nil
}

// in gives a context the life of this forwarder: some work is finished in contexts of its own.
func (s *store) in(ctx context.Context) context.Context {
	return context.WithValue(ctx, lifeKey{}, s.life)
}

func heard[T any](s *store, op string, v T, err error) (T, error) {
	if err == nil {
		err = s.life.hears(op)
	}
	if err != nil {
		var none T
		return none, err
	}
	return v, nil
}

func (s *store) Check(ctx context.Context) error { return s.Store.Check(s.in(ctx)) }

func (s *store) Join(ctx context.Context, replica string, lease time.Duration) error {
	return s.Store.Join(s.in(ctx), replica, lease)
}

func (s *store) Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error) {
	v, err := s.Store.Renew(s.in(ctx), replica, beat, lease, down)
	return heard(s, "Renew", v, err)
}

func (s *store) Leave(ctx context.Context, replica string) error {
	return s.Store.Leave(s.in(ctx), replica)
}

func (s *store) Sweep(ctx context.Context, replica string) (int, error) {
	v, err := s.Store.Sweep(s.in(ctx), replica)
	return heard(s, "Sweep", v, err)
}

func (s *store) Survey(ctx context.Context) (outbox.Survey, error) {
	v, err := s.Store.Survey(s.in(ctx))
	return heard(s, "Survey", v, err)
}

func (s *store) Claim(ctx context.Context, replica string, n int) ([]outbox.Grant, error) {
	v, err := s.Store.Claim(s.in(ctx), replica, n)
	s.life.w.claimed(v)
	return heard(s, "Claim", v, err)
}

func (s *store) Release(ctx context.Context, grants []outbox.Grant) error {
	return s.Store.Release(s.in(ctx), grants)
}

func (s *store) Calm(ctx context.Context, g outbox.Grant) error { return s.Store.Calm(s.in(ctx), g) }

func (s *store) Topics(ctx context.Context) (outbox.Topics, error) {
	v, err := s.Store.Topics(s.in(ctx))
	return heard(s, "Topics", v, err)
}

func (s *store) Read(ctx context.Context, q outbox.Read) ([]outbox.Row, error) {
	v, err := s.Store.Read(s.in(ctx), q)
	return heard(s, "Read", v, err)
}

func (s *store) Promote(ctx context.Context, grants []outbox.Grant) (outbox.Promotion, error) {
	v, err := s.Store.Promote(s.in(ctx), grants)
	return heard(s, "Promote", v, err)
}

func (s *store) Stops(ctx context.Context, lanes []int) ([]outbox.Stop, error) {
	v, err := s.Store.Stops(s.in(ctx), lanes)
	return heard(s, "Stops", v, err)
}

func (s *store) Settle(ctx context.Context, grants []outbox.Grant, rows []outbox.Ref) (outbox.Settled, error) {
	v, err := s.Store.Settle(s.in(ctx), grants, rows)
	return heard(s, "Settle", v, err)
}

func (s *store) Attempt(ctx context.Context, g outbox.Grant, r outbox.Ref, attempt int) (bool, error) {
	v, err := s.Store.Attempt(s.in(ctx), g, r, attempt)
	return heard(s, "Attempt", v, err)
}

func (s *store) Mark(ctx context.Context, grants []outbox.Grant, rows []outbox.Ref) ([]int64, error) {
	v, err := s.Store.Mark(s.in(ctx), grants, rows)
	return heard(s, "Mark", v, err)
}

func (s *store) Refuse(ctx context.Context, g outbox.Grant, f outbox.Refused) (bool, error) {
	v, err := s.Store.Refuse(s.in(ctx), g, f)
	return heard(s, "Refuse", v, err)
}

func (s *store) Hold(ctx context.Context, g outbox.Grant, destination string, rows []outbox.Ref) (bool, error) {
	v, err := s.Store.Hold(s.in(ctx), g, destination, rows)
	return heard(s, "Hold", v, err)
}

func (s *store) Lift(ctx context.Context, g outbox.Grant, destination, key string) (bool, error) {
	v, err := s.Store.Lift(s.in(ctx), g, destination, key)
	return heard(s, "Lift", v, err)
}

func (s *store) Park(ctx context.Context, g outbox.Grant, f outbox.Refused) (bool, error) {
	v, err := s.Store.Park(s.in(ctx), g, f)
	return heard(s, "Park", v, err)
}
