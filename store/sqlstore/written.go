package sqlstore

import (
	"context"
	"errors"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

// written is a message as it is written: what cannot be read is handled by it, too.
type written struct {
	group, id, key         string
	attempts               int
	history, head, payload []byte
}

func write(e store.Entry) (w written, err error) {
	w = written{group: e.Group, id: form.Name(e.MessageID), key: form.Key(e.OrderKey), attempts: e.Attempts}
	w.history, w.head, w.payload, err = form.Encode(e)
	return w, err
}

// row are the values of a delayed message that is due after that many microseconds, or waits for its key if
// that is nil.
func (w written) row(delay any) []any {
	return []any{w.group, w.id, w.key, w.attempts, w.history, w.head, w.payload, delay}
}

// duplicateEntry fails the statement alone.
const duplicateEntry = 1062

// fresh runs an INSERT. It reports false if the message is there already.
func (s *statements) fresh(ctx context.Context, q txn.Querier, insert string, args ...any) (bool, error) {
	if s.dialect != txn.MySQL { // whose INSERT IGNORE would hide other mistakes, too
		insert += ` ON CONFLICT (grp, message_id) DO NOTHING`
	}
	n, err := q.Exec(ctx, insert, args...)
	if err != nil && s.dialect == txn.MySQL && dberr.MySQL(err) == duplicateEntry {
		return false, nil
	}
	return n > 0, err
}

// unreadable is a message that was taken and cannot be read.
type unreadable struct {
	pos            int64
	id, key, topic string // as written; the topic is "" if it cannot be read either
	cause          error
}

var errTaken = errors.New("somebody else has taken it")

// setAside makes the message a dead letter, its bytes as they are, and the next one of its key due. If
// somebody else has taken it meanwhile, it is theirs.
func (s *Store) setAside(ctx context.Context, t store.Take, u unreadable) error {
	err := s.atomic(ctx, "set aside", func(said *statements, q txn.Querier) error {
		// A message that is dead already stays dead as it is.
		_, err := said.fresh(ctx, q, said.setAside, form.Name(u.topic), store.ReasonUnreadable, form.Line(u.cause.Error(), 1000), u.pos, t.Owner)
		if err != nil {
			return err
		}
		switch n, err := q.Exec(ctx, said.clear, u.pos, t.Owner); {
		case err != nil:
			return err
		case n == 0:
			return errTaken
		case u.key == "":
			return nil
		}
		_, err = q.Exec(ctx, said.next, t.Group, u.key)
		return err
	})
	if errors.Is(err, errTaken) {
		return nil
	}
	return err
}
