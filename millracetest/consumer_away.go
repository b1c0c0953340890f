package millracetest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/dedup"
)

// ErrAway is what a store answers while it is away.
var ErrAway = errors.New("millracetest: the store is away")

// AwayStore is a dedup.Store that can be taken away, as when Redis is down.
type AwayStore struct {
	store dedup.Store
	away  atomic.Bool
}

var _ dedup.Store = (*AwayStore)(nil)

// Away returns a store that hands on to st as long as it is there.
func Away(st dedup.Store) *AwayStore { return &AwayStore{store: st} }

// Set takes the store away or brings it back, with all that it remembered.
func (s *AwayStore) Set(away bool) { s.away.Store(away) }

func (s *AwayStore) there() error {
	if s.away.Load() {
		return ErrAway
	}
	return nil
}

// Check implements dedup.Store.
func (s *AwayStore) Check(ctx context.Context) error {
	if err := s.there(); err != nil {
		return err
	}
	return s.store.Check(ctx)
}

// Claim implements dedup.Store.
func (s *AwayStore) Claim(ctx context.Context, key dedup.Key, req dedup.Request) (dedup.Answer, error) {
	if err := s.there(); err != nil {
		return dedup.Answer{}, err
	}
	return s.store.Claim(ctx, key, req)
}

// Renew implements dedup.Store.
func (s *AwayStore) Renew(ctx context.Context, key dedup.Key, owner string, lease time.Duration) (bool, error) {
	if err := s.there(); err != nil {
		return false, err
	}
	return s.store.Renew(ctx, key, owner, lease)
}

// Done implements dedup.Store.
func (s *AwayStore) Done(ctx context.Context, key dedup.Key, owner string, result []byte, ttl time.Duration) (dedup.Mark, error) {
	if err := s.there(); err != nil {
		return 0, err
	}
	return s.store.Done(ctx, key, owner, result, ttl)
}

// Release implements dedup.Store.
func (s *AwayStore) Release(ctx context.Context, key dedup.Key, owner string, fresh bool) error {
	if err := s.there(); err != nil {
		return err
	}
	return s.store.Release(ctx, key, owner, fresh)
}
