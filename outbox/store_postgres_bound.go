package outbox

import (
	"context"
	"strconv"

	"github.com/millrace-go/millrace/internal/txn"
)

// The position that was drawn last, 0 if there is none or this user may not know. It is asked before the
// writers are, in a statement of its own: who draws a lower one is then among them, or has ended.
const pgLastDrawn = `SELECT coalesce((
	SELECT CASE WHEN has_sequence_privilege(s.oid, 'SELECT,USAGE') THEN pg_sequence_last_value(s.oid) END
	FROM (SELECT pg_get_serial_sequence('millrace_outbox', 'pos')::regclass::oid AS oid) s), 0)`

// Every statement that inserts takes this lock before it draws a position, and keeps it until its rows
// can be seen. A prepared transaction has no process.
const pgWriters = `SELECT DISTINCT CASE WHEN pid IS NULL THEN '` + prepared + `' ELSE virtualtransaction END FROM pg_locks
	WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = 'millrace_outbox'::regclass
	  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// Of the positions in ($1, $2] the lowest whose row is ready. It goes by the primary key, which the
// planner must not see another way around.
const pgLowestReady = `SELECT coalesce((SELECT pos FROM millrace_outbox
	WHERE pos > $1::bigint AND pos <= $2::bigint AND ready::int = 1 ORDER BY pos LIMIT 1), $2::bigint + 1)`

// raise does a step of the proof of a higher bound if one is due: a few small statements in a second,
// none of which takes a transaction id. Without an answer the bound is given up.
func (p *postgres) raise(ctx context.Context) {
	if !p.stepping() {
		return
	}
	defer p.bound.step.Unlock()
	at, token := p.bound.get()
	last, err := p.number(ctx, pgLastDrawn)
	p.raised(ctx, p.raiseTo(ctx, last, at, token, err))
}

// stepping reports whether a step is due and nobody else does it; its caller then does, and has the lock.
func (p *postgres) stepping() bool {
	if !p.bound.step.TryLock() {
		return false
	}
	if !p.bound.due() {
		p.bound.step.Unlock()
		return false
	}
	p.bound.before = p.bound.known()
	return true
}

func (p *postgres) raised(ctx context.Context, err error) {
	if err != nil {
		p.forget()
		p.log.DebugContext(ctx, "outbox reads from the bottom, no bound was found", "error", err)
	}
}

// raiseTo goes on with the proof, or begins one, for the position that was drawn last. The bound and its token
// are those of the moment before that was asked, with err.
func (p *postgres) raiseTo(ctx context.Context, last, at int64, token uint64, err error) error {
	if err != nil {
		return err
	}
	if last < p.bound.upto || last < at || p.bound.begun && p.bound.since != p.bound.before {
		p.forget() // the server lost commits, or may have: positions are drawn again
		return nil
	}
	if !p.bound.holds(last, token) {
		writers, err := p.writers(ctx)
		if err != nil || !p.bound.wait(last, writers) {
			return err
		}
		p.bound.begun, p.bound.proved, p.bound.token = false, true, token
		p.bound.sees(p.bound.upto, p.bound.since)
	} else if at == last {
		return nil // nothing waits, and nothing has come
	}
	full := p.bound.old()
	if full {
		at = 0
	}
	lowest, err := p.number(ctx, pgLowestReady, at, p.bound.upto)
	if err != nil {
		return err
	}
	p.bound.set(lowest-1, token)
	if full {
		p.bound.full = p.bound.stepped
	}
	return nil
}

// forget gives up the bound and the proof that is under way. Its caller does the step.
func (p *postgres) forget() {
	p.bound.proof = proof{stepped: p.bound.stepped}
	p.bound.reset()
}

func (p *postgres) number(ctx context.Context, query string, args ...any) (n int64, err error) {
	err = p.query(ctx, "bound", query, args, func(row txn.Scanner) error { return row.Scan(&n) })
	return n, err
}

func (p *postgres) writers(ctx context.Context) (all []string, err error) {
	err = p.query(ctx, "bound", pgWriters, nil, func(row txn.Scanner) error {
		var one string
		err := row.Scan(&one)
		all = append(all, one)
		return err
	})
	return all, err
}

// fewRows is up to how many rows above the bound are looked at for their topics.
const fewRows = 1000

// pgAndLast adds the position that was drawn last to a statement about topics: a quiet outbox is asked for both
// at once.
const pgAndLast = `
	UNION ALL SELECT 'last', (` + pgLastDrawn + `)::text`

// $1 bound, $2 rows. The rows are found by the primary key.
const pgFewTopics = `SELECT CASE WHEN bool_or(ready) THEN 'ready' ELSE '' END, topic, count(*) FROM (
	SELECT topic, ready FROM millrace_outbox WHERE pos > $1::bigint ORDER BY pos LIMIT $2::int) o
	GROUP BY topic
	UNION ALL SELECT kind, name, 0 FROM millrace_pauses
	UNION ALL SELECT 'last', (` + pgLastDrawn + `)::text, 0`

// topics implements dialect. Hopping through the index takes a step for each topic, and one for each
// deleted row that is in the way; while few rows wait, these are looked at instead. A step of the proof
// goes with it if one is due.
func (p *postgres) topics(ctx context.Context) (Topics, error) {
	stepping := p.stepping()
	if stepping {
		defer p.bound.step.Unlock()
	}
	at, token := p.bound.get()
	found, last, err := p.topicsAbove(ctx, at)
	if stepping {
		p.raised(ctx, p.raiseTo(ctx, last, at, token, err))
	}
	return found, err
}

func (p *postgres) topicsAbove(ctx context.Context, at int64) (found Topics, last int64, err error) {
	if at > 0 {
		found, last, few, err := p.fewTopics(ctx, at)
		if few || err != nil {
			return found, last, err
		}
	}
	var t topics
	err = p.query(ctx, "topics", topicsQuery+pgAndLast, nil, func(row txn.Scanner) error {
		var kind, name string
		if err := row.Scan(&kind, &name); err != nil {
			return err
		}
		return t.addOrLast(kind, name, &last)
	})
	return t.answer(), last, err
}

func (p *postgres) fewTopics(ctx context.Context, at int64) (_ Topics, last int64, few bool, err error) {
	var t topics
	rows := 0
	err = p.query(ctx, "topics", pgFewTopics, []any{at, fewRows}, func(row txn.Scanner) error {
		var kind, name string
		var n int
		if err := row.Scan(&kind, &name, &n); err != nil {
			return err
		}
		rows += n
		return t.addOrLast(kind, name, &last)
	})
	return t.answer(), last, rows < fewRows, err
}

// addOrLast takes up one row of an answer, which may be the position that was drawn last.
func (t *topics) addOrLast(kind, name string, last *int64) (err error) {
	if kind == "last" {
		*last, err = strconv.ParseInt(name, 10, 64)
		return err
	}
	t.add(kind, name)
	return nil
}
