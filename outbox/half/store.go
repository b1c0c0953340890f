package half

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// stored is a half message as it stands in the table.
type stored struct {
	Info
	callback, digest string
	maxAge           int64 // microseconds
	age              time.Duration
	claim            int64
}

const columns = `id, topic, state, reason, witness, callback, max_age, checks, claim, last_error, digest,
	{micros prepared_at}, COALESCE({micros decided_at}, 0), {age prepared_at}`

func scan(row txn.Scanner, s *stored) error {
	var state string
	var prepared, decided, age int64
	err := row.Scan(&s.ID, &s.Topic, &state, &s.Reason, &s.Witness, &s.callback, &s.maxAge, &s.Checks, &s.claim,
		&s.LastError, &s.digest, &prepared, &decided, &age)
	s.State, s.PreparedAt, s.DecidedAt = State(state), fromMicros(prepared), fromMicros(decided)
	s.age = time.Duration(age) * time.Microsecond
	return err
}

// load reads one message; suffix may lock it.
func (m *Messages) load(ctx context.Context, q txn.Querier, d txn.Dialect, id, suffix string) (s stored, err error) {
	found := false
	err = query(ctx, q, d, `SELECT `+columns+` FROM millrace_half WHERE id = $1`+suffix, []any{id}, func(row txn.Scanner) error {
		found = true
		return scan(row, &s)
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return s, err
}

// content reads the message itself.
func (m *Messages) content(ctx context.Context, q txn.Querier, d txn.Dialect, id string) (*message.Message, error) {
	var metadata string
	var payload []byte
	err := query(ctx, q, d, `SELECT metadata, payload FROM millrace_half WHERE id = $1`, []any{id}, func(row txn.Scanner) error {
		return row.Scan(&metadata, &payload)
	})
	if err != nil {
		return nil, err
	}
	msg := message.NewMessage(id, payload)
	if err := json.Unmarshal([]byte(metadata), &msg.Metadata); err != nil {
		return nil, fmt.Errorf("half: the metadata of %s is not a JSON object of strings", id)
	}
	return msg, nil
}

// forUpdate locks a row that was read. SQLite has one writer, which the transaction is.
func forUpdate(d txn.Dialect) string {
	if d == txn.SQLite {
		return ""
	}
	return " FOR UPDATE"
}

// Get says what is known of a message.
func (m *Messages) Get(ctx context.Context, id string) (Info, error) {
	dialect, err := m.pool.Dialect(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("half: get: %w", err)
	}
	s, err := m.load(ctx, m.pool, dialect, id, "")
	if err != nil {
		return Info{}, fmt.Errorf("half: get: %w", err)
	}
	return s.Info, nil
}

// List returns up to limit messages in a state, in the order of their ids, that come after the id
// after ("" for the first page).
func (m *Messages) List(ctx context.Context, state State, after string, limit int) (page []Info, err error) {
	dialect, err := m.pool.Dialect(ctx)
	if err != nil {
		return nil, fmt.Errorf("half: list: %w", err)
	}
	err = query(ctx, m.pool, dialect, `SELECT `+columns+` FROM millrace_half WHERE state = $1 AND id > $2 ORDER BY id LIMIT $3`,
		[]any{string(state), after, max(limit, 1)}, func(row txn.Scanner) error {
			var s stored
			err := scan(row, &s)
			page = append(page, s.Info)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("half: list: %w", err)
	}
	return page, nil
}

// clip bounds a text for a column.
func clip(s string) string {
	const most = 900
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "?")
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
