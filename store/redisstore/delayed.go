package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

// Admit implements store.Delayed.
func (s *Store) Admit(ctx context.Context, e store.Entry) (store.Admission, error) {
	e.Attempts, e.Returns, e.History = 0, 0, nil
	id, key, history, head, payload, err := checked(e)
	if err != nil {
		return 0, err
	}
	n, err := s.run(ctx, "admit", admit, e.Group, id, key, history, head, payload).Int()
	return store.Admission(n), err
}

func checked(e store.Entry) (id, key, history, head, payload string, err error) {
	if err = e.Check(); err != nil {
		return
	}
	return written(e)
}

// Defer implements store.Delayed.
func (s *Store) Defer(ctx context.Context, e store.Entry, delay time.Duration) error {
	id, key, history, head, payload, err := checked(e)
	if err != nil {
		return err
	}
	return s.run(ctx, "defer", deferred, e.Group, id, key, history, head, payload, e.Attempts, millis(delay)).Err()
}

// Take implements store.Delayed.
func (s *Store) Take(ctx context.Context, t store.Take) ([]store.Entry, time.Duration, error) {
	if err := t.Check(); err != nil {
		return nil, 0, err
	}
	reply, err := s.run(ctx, "take", take, t.Group, t.Owner, t.Limit, millis(t.Lease)).Slice()
	if err != nil {
		return nil, 0, err
	}
	const fields = 5
	if len(reply)%fields != 1 {
		return nil, 0, fmt.Errorf("redisstore: take: the server's answer is not understood (%d values)", len(reply))
	}
	wait, _ := reply[0].(int64)
	next := time.Duration(wait) * time.Millisecond
	var taken []store.Entry
	for at := 1; at < len(reply); at += fields {
		v := texts(reply[at : at+fields])
		attempts, _ := strconv.Atoi(v[1])
		e, err := form.Decode(t.Group, []byte(v[2]), []byte(v[3]), []byte(v[4]), attempts)
		if err == nil {
			taken = append(taken, e)
			continue
		}
		next = 0 // another one of its key may be due now
		name := form.NameOf(v[0])
		if e.MessageID != "" {
			name = form.Name(e.MessageID)
		}
		t.Unreadable(name, errors.Join(err, s.setAside(ctx, t, v[0], name, e.Topic, err)))
	}
	return taken, next, nil
}

// setAside makes a message that was taken and cannot be read a dead letter. If somebody else has taken it
// meanwhile, it is theirs.
func (s *Store) setAside(ctx context.Context, t store.Take, id, name, topic string, cause error) error {
	return s.run(ctx, "set aside", setAside, t.Group, id, t.Owner, name, form.Name(topic), store.ReasonUnreadable,
		form.Line(cause.Error(), 1000)).Err()
}

// texts are the values of an answer that are texts; others are "".
func texts(values []any) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i], _ = v.(string)
	}
	return all
}

// owned runs a script that answers whether the owner holds the message.
func owned(e store.Entry, run func(id string) (int, error)) (bool, error) {
	if err := e.Check(); err != nil {
		return false, err
	}
	n, err := run(form.Key(e.MessageID))
	return n == 1, err
}

// Renew implements store.Delayed.
func (s *Store) Renew(ctx context.Context, e store.Entry, owner string, lease time.Duration) (bool, error) {
	return owned(e, func(id string) (int, error) {
		return s.run(ctx, "renew", renew, e.Group, id, owner, millis(lease)).Int()
	})
}

// Begin implements store.Delayed.
func (s *Store) Begin(ctx context.Context, e store.Entry, owner string, attempt int) (bool, error) {
	return owned(e, func(id string) (int, error) {
		return s.run(ctx, "begin", begin, e.Group, id, owner, attempt).Int()
	})
}

// Return implements store.Delayed.
func (s *Store) Return(ctx context.Context, e store.Entry, owner string, delay time.Duration) (bool, error) {
	history, _, _, err := form.Encode(e)
	if err != nil {
		return false, err
	}
	return owned(e, func(id string) (int, error) {
		return s.run(ctx, "return", giveBack, e.Group, id, owner, e.Attempts, string(history), millis(delay)).Int()
	})
}

// Forget implements store.Delayed.
func (s *Store) Forget(ctx context.Context, e store.Entry, owner string) (bool, error) {
	return owned(e, func(id string) (int, error) {
		return s.run(ctx, "forget", forget, e.Group, id, owner).Int()
	})
}

// Stats implements store.Delayed.
func (s *Store) Stats(ctx context.Context, group string) (store.Stats, error) {
	if err := store.CheckGroup(group); err != nil {
		return store.Stats{}, err
	}
	n, err := s.run(ctx, "stats", stats, group).Int64Slice()
	if err != nil {
		return store.Stats{}, err
	}
	if len(n) != 5 {
		return store.Stats{}, fmt.Errorf("redisstore: stats: the server's answer is not understood (%d values)", len(n))
	}
	return store.Stats{Stored: int(n[0]), Due: int(n[1]), Held: int(n[2]), Blocked: int(n[3]), Dead: int(n[4])}, nil
}

// millis rounds up: a fraction of a millisecond is not none.
func millis(d time.Duration) int64 { return int64((d + time.Millisecond - 1) / time.Millisecond) }
