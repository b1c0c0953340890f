package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/txn"
)

// source is the table of a state, and how its columns are named as those of a Record.
type source struct {
	table, seq, at string
	state          string // expression
	where          string // condition, "" for none
	due, schedule  string
	held           string
	why            string // destination, reason, error
}

var sources = map[State]source{
	StateWaiting: {table: "millrace_outbox", seq: "pos", at: "created_at", state: "'waiting'",
		due: "{us due_at}", schedule: "schedule", held: "held", why: "'', '', ''"},
	StateSent: {table: "millrace_sent", seq: "seq", at: "sent_at", state: "state", where: "state = 'sent'",
		due: "{us due_at}", schedule: "NULL", held: "NULL", why: "'', '', ''"},
	StateDone: {table: "millrace_sent", seq: "seq", at: "done_at", state: "state", where: "state = 'done'",
		due: "NULL", schedule: "NULL", held: "NULL", why: "'', '', ''"},
	StateDead: {table: "millrace_dead", seq: "seq", at: "died_at", state: "'dead'",
		due: "NULL", schedule: "NULL", held: "NULL", why: "destination, reason, error"},
}

func (s source) columns(whole bool) string {
	c := s.seq + `, pos, id, lane, topic, order_key, ` + s.state + `, attempts, size, keep, {us created_at}, {us ` + s.at + `}, ` +
		s.due + `, ` + s.schedule + `, ` + s.held + `, ` + s.why
	if whole {
		c += `, metadata, payload`
	}
	return c
}

func scanRecord(row txn.Scanner, whole bool) (Record, error) {
	var (
		r              Record
		created, at    int64
		due            *int64
		schedule, held *string
		metadata       []byte
	)
	dest := []any{&r.Seq, &r.Pos, &r.ID, &r.Lane, &r.Topic, &r.Key, &r.State, &r.Attempts, &r.Size, &r.After, &created, &at,
		&due, &schedule, &held, &r.Destination, &r.Reason, &r.Error}
	if whole {
		dest = append(dest, &metadata, &r.Payload)
	}
	if err := row.Scan(dest...); err != nil {
		return Record{}, err
	}
	r.CreatedAt, r.At = unixMicro(&created), unixMicro(&at)
	r.Due, r.Schedule, r.Held = unixMicro(due), orEmpty(schedule), orEmpty(held)
	if whole {
		// One that cannot be decoded is shown without.
		r.Metadata, _ = decodeMetadata(string(metadata), r.Key)
	}
	return r, nil
}

func unixMicro(n *int64) time.Time {
	if n == nil {
		return time.Time{}
	}
	return time.UnixMicro(*n).UTC()
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// clause is a growing WHERE with its parameters, in order.
type clause struct {
	parts []string
	args  []any
}

// add adds a condition, with ? for each of its parameters.
func (c *clause) add(condition string, args ...any) {
	for _, arg := range args {
		c.args = append(c.args, arg)
		condition = strings.Replace(condition, "?", "$"+strconv.Itoa(len(c.args)), 1)
	}
	c.parts = append(c.parts, condition)
}

func (c *clause) String() string {
	if len(c.parts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.parts, " AND ")
}

// any is the conditions, one of which is to hold.
func (c *clause) any() string { return strings.Join(c.parts, " OR ") }

// where is a filter as a condition on its source.
func (f Filter) where() (source, *clause, error) {
	if f.State == "" {
		f.State = StateDead
	}
	s, ok := sources[f.State]
	if !ok {
		return s, nil, fmt.Errorf("outbox: there is no state %q", f.State)
	}
	if f.State != StateDead && (f.Reason != "" || f.Destination != "") {
		return s, nil, errors.New("outbox: only dead messages have a reason and a destination")
	}
	if len(f.IDs) > maxPage {
		return s, nil, fmt.Errorf("outbox: Filter.IDs has %d, at most %d", len(f.IDs), maxPage)
	}
	c := &clause{}
	if s.where != "" {
		c.add(s.where)
	}
	for _, equal := range [][2]string{{"topic", f.Topic}, {"order_key", f.Key}, {"reason", f.Reason}, {"destination", f.Destination}} {
		if equal[1] != "" {
			c.add(equal[0]+" = ?", equal[1])
		}
	}
	switch {
	case len(f.IDs) > 0:
		c.add("id IN (?"+strings.Repeat(", ?", len(f.IDs)-1)+")", anyOf(f.IDs)...)
	case f.IDs != nil:
		c.add("1 = 0")
	}
	if !f.Since.IsZero() {
		c.add(s.at+" >= {at ?}", f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		c.add(s.at+" < {at ?}", f.Until.UnixMicro())
	}
	return s, c, nil
}

const (
	defaultPage = 100
	maxPage     = 1000
)

// List returns messages of one state, without their content, page by page. A filter that few of very many
// rows meet reads them all, but for IDs.
func (b *Box) List(ctx context.Context, q Query) (Page, error) {
	s, where, err := q.where()
	if err != nil {
		return Page{}, err
	}
	if q.Limit < 0 || q.Cursor < 0 {
		return Page{}, errors.New("outbox: list: Limit and Cursor must not be negative")
	}
	limit := q.Limit
	if limit == 0 {
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	order, beyond := "", " > ?"
	if q.Newest {
		order, beyond = " DESC", " < ?"
	}
	if q.Cursor != 0 {
		where.add(s.seq+beyond, q.Cursor)
	}
	var page Page
	text := fmt.Sprintf("SELECT %s FROM %s%s ORDER BY %s%s LIMIT %d", s.columns(false), s.table, where, s.seq, order, limit+1)
	err = b.store.once(ctx, "list", text, where.args, func(row txn.Scanner) error {
		r, err := scanRecord(row, false)
		page.Records = append(page.Records, r)
		return err
	})
	if err != nil {
		return Page{}, err
	}
	if len(page.Records) > limit {
		page.Records = page.Records[:limit]
		page.Next = page.Records[limit-1].Seq
	}
	return page, nil
}

// Find tells where the message with an id is, and what is known of its life, as of one moment. ErrNotFound means
// that nothing is: it never was here, or was sent at the first attempt and deleted.
func (b *Box) Find(ctx context.Context, id string) (t Trace, err error) {
	err = b.look(ctx, "find", func(h hand) (err error) {
		t = Trace{}
		for _, state := range []State{StateWaiting, StateSent, StateDone, StateDead} {
			if err := h.find(ctx, state, id, &t.Records); err != nil {
				return err
			}
		}
		if t.History, err = h.history(ctx, id); err != nil {
			return err
		}
		if t.Confirmations, err = h.confirmations(ctx, id); err != nil {
			return err
		}
		if len(t.Records)+len(t.History)+len(t.Confirmations) == 0 {
			return fmt.Errorf("%w: message %q", ErrNotFound, id)
		}
		return nil
	})
	if err != nil {
		return Trace{}, err
	}
	return t, nil
}

// find adds the records of an id that are in a state.
func (h hand) find(ctx context.Context, state State, id string, found *[]Record) error {
	s, where, err := Filter{State: state, IDs: []string{id}}.where()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("SELECT %s FROM %s%s ORDER BY %s LIMIT %d", s.columns(true), s.table, where, s.seq, defaultPage)
	return h.ask(ctx, text, where.args, func(row txn.Scanner) error {
		r, err := scanRecord(row, true)
		*found = append(*found, r)
		return err
	})
}

func (h hand) history(ctx context.Context, id string) (events []Event, err error) {
	err = h.ask(ctx, `SELECT {us at}, event, attempt, destination, reason, error, who FROM millrace_history
		WHERE id = $1 ORDER BY seq LIMIT 1000`, []any{id}, func(row txn.Scanner) error {
		var e Event
		var at int64
		err := row.Scan(&at, &e.What, &e.Attempt, &e.Destination, &e.Reason, &e.Error, &e.Who)
		e.At = unixMicro(&at)
		events = append(events, e)
		return err
	})
	return events, err
}

func (h hand) confirmations(ctx context.Context, id string) (all []Confirmed, err error) {
	err = h.ask(ctx, `SELECT grp, outcome, sending, error, {us at} FROM millrace_confirmations
		WHERE id = $1 ORDER BY grp`, []any{id}, func(row txn.Scanner) error {
		var c Confirmed
		var at int64
		err := row.Scan(&c.Group, &c.Outcome, &c.Sending, &c.Error, &at)
		c.Sending, c.At = confirmation.Told(c.Sending), unixMicro(&at)
		all = append(all, c)
		return err
	})
	return all, err
}
