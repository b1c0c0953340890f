package outbox

import (
	"context"

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
	if !p.bound.step.TryLock() {
		return // another read does it
	}
	defer p.bound.step.Unlock()
	if !p.bound.due() {
		return
	}
	if err := p.raiseNow(ctx); err != nil {
		p.forget()
		p.log.DebugContext(ctx, "outbox reads from the bottom, no bound was found", "error", err)
	}
}

func (p *postgres) raiseNow(ctx context.Context) error {
	at, token := p.bound.get()
	last, err := p.number(ctx, pgLastDrawn)
	if err != nil {
		return err
	}
	if last < p.bound.upto || last < at { // the server lost commits: positions are drawn again
		p.forget()
		at, token = p.bound.get()
	}
	writers, err := p.writers(ctx)
	if err != nil || !p.bound.wait(last, writers) {
		return err
	}
	p.bound.begun = false
	full := p.bound.stepped.Sub(p.bound.full) >= boundTrust
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

// $1 bound, $2 rows. The rows are found by the primary key.
const pgFewTopics = `SELECT CASE WHEN bool_or(ready) THEN 'ready' ELSE '' END, topic, count(*) FROM (
	SELECT topic, ready FROM millrace_outbox WHERE pos > $1::bigint ORDER BY pos LIMIT $2::int) o
	GROUP BY topic
	UNION ALL SELECT kind, name, 0 FROM millrace_pauses`

// topics implements dialect. Hopping through the index takes a step for each topic, and one for each
// deleted row that is in the way; while few rows wait, these are looked at instead.
func (p *postgres) topics(ctx context.Context) (Topics, error) {
	p.raise(ctx)
	if at, _ := p.bound.get(); at > 0 {
		topics, few, err := p.fewTopics(ctx, at)
		if few || err != nil {
			return topics, err
		}
	}
	return p.hop(ctx)
}

func (p *postgres) fewTopics(ctx context.Context, at int64) (_ Topics, few bool, err error) {
	var t topics
	rows := 0
	err = p.query(ctx, "topics", pgFewTopics, []any{at, fewRows}, func(row txn.Scanner) error {
		var kind, name string
		var n int
		err := row.Scan(&kind, &name, &n)
		rows += n
		t.add(kind, name)
		return err
	})
	return t.answer(), rows < fewRows, err
}
