package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// errArchive marks errors of Retention.Archive, which are passed on as they are.
var errArchive = errors.New("outbox: archive")

// Executor runs statements of the transaction that it was handed out for.
type Executor interface {
	// Exec runs a statement and returns the number of rows that it changed. Parameters are written as
	// the database wants them.
	Exec(ctx context.Context, sql string, args ...any) (int64, error)
}

// Retention configures what is deleted of that which is remembered. How long a sent message is kept is
// the business of its Policy. Dead messages, and those whose confirmation is awaited, are never deleted.
type Retention struct {
	// History is how long the history of messages, and confirmations, are kept. It must be longer than
	// any MaxAge of a Policy. Default 30 days.
	History time.Duration
	// Audit is how long it is kept what was done by hand. Default one year.
	Audit time.Duration
	// Batch is the number of rows that one transaction deletes. Default 500, at most 1000.
	Batch int
	// Every is the pause between two rounds of RunRetention. Default 1 min.
	Every time.Duration
	// Archive, if set, is given the sent messages that are about to be deleted, whole, in the transaction
	// that deletes them. On an error nothing is deleted, and the next round tries again. It is called
	// again for messages whose transaction did not commit.
	Archive func(ctx context.Context, tx Executor, records []Record) error
}

func (r Retention) check() error {
	if r.History < 0 || r.Audit < 0 || r.Every < 0 || r.Batch < 0 || r.Batch > maxPage {
		return fmt.Errorf("outbox: Retention: want Batch from 0 to %d, and no negative times", maxPage)
	}
	return nil
}

func (r Retention) withDefaults() Retention {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&r.History, 30*24*time.Hour)
	set(&r.Audit, 365*24*time.Hour)
	set(&r.Every, time.Minute)
	if r.Batch == 0 {
		r.Batch = 500
	}
	return r
}

// Purged counts what was deleted.
type Purged struct {
	Sent, History, Confirmations, Audits int64
}

func (p Purged) total() int64 { return p.Sent + p.History + p.Confirmations + p.Audits }

// RunRetention is what a running forwarder does beside its work; call it where there is none. It purges, now
// and every Config.Retention.Every, until ctx ends; then it returns nil. What fails is logged and tried again
// in the next round. Several replicas may run it: each row is deleted, and archived, by one.
func (b *Box) RunRetention(ctx context.Context) error {
	tick := time.NewTicker(b.cfg.Retention.withDefaults().Every)
	defer tick.Stop()
	for {
		p, err := b.Purge(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			b.log.WarnContext(ctx, "outbox not purged, trying again", "error", err)
		case p.total() > 0:
			b.log.DebugContext(ctx, "outbox purged", "sent", p.Sent, "history", p.History, "confirmations", p.Confirmations)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Purge deletes what has been kept for long enough, in batches, until nothing is left of it. It goes by
// indexes, and costs next to nothing when there is nothing to do. What fails for one kind of it, as an archive that
// is full, keeps no other from being purged; the errors are joined.
func (b *Box) Purge(ctx context.Context) (p Purged, err error) {
	r := b.cfg.Retention.withDefaults()
	var errs []error
	for _, kind := range []struct {
		purged *int64
		batch  func(hand) (int64, error)
	}{
		{&p.Sent, func(h hand) (int64, error) { return h.purgeSent(ctx, r) }},
		{&p.History, func(h hand) (int64, error) { return h.purgeOld(ctx, "millrace_history", r.History, r.Batch) }},
		{&p.Audits, func(h hand) (int64, error) { return h.purgeOld(ctx, "millrace_audit", r.Audit, r.Batch) }},
		{&p.Confirmations, func(h hand) (int64, error) { return h.purgeConfirmations(ctx, r) }},
	} {
		var err error
		*kind.purged, err = b.purge(ctx, r, kind.batch)
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return p, errors.Join(errs...)
}

// purge repeats a batch until one is not full.
func (b *Box) purge(ctx context.Context, r Retention, batch func(hand) (int64, error)) (total int64, err error) {
	for {
		var n int64
		err := b.byHand(ctx, "purge", func(h hand) (err error) {
			n, err = batch(h)
			return err
		})
		if err != nil {
			return total, err
		}
		if total += n; n < int64(r.Batch) {
			return total, nil
		}
		if err := ctx.Err(); err != nil {
			return total, err
		}
	}
}

// purgeSent deletes a batch of the sent messages whose time is over.
func (h hand) purgeSent(ctx context.Context, r Retention) (int64, error) {
	s := sources[StateSent]
	columns := s.seq
	if r.Archive != nil {
		columns = s.columns(true)
	}
	var seqs []int64
	var records []Record
	text := fmt.Sprintf(`SELECT %s FROM millrace_sent WHERE expires_at IS NOT NULL AND expires_at <= {before $1} ORDER BY expires_at LIMIT %d`, columns, r.Batch)
	err := h.ask(ctx, text+h.free(), []any{0}, func(row txn.Scanner) error {
		if r.Archive == nil {
			var seq int64
			err := row.Scan(&seq)
			seqs = append(seqs, seq)
			return err
		}
		record, err := scanRecord(row, true)
		seqs, records = append(seqs, record.Seq), append(records, record)
		return err
	})
	if err != nil || len(seqs) == 0 {
		return 0, err
	}
	if r.Archive != nil {
		if err := r.Archive(ctx, h.Querier, records); err != nil {
			return 0, fmt.Errorf("%w: %w", errArchive, err)
		}
	}
	return h.run(ctx, `{delete millrace_sent PRIMARY} WHERE seq IN (`+list(seqs)+`)`)
}

// purgeOld deletes a batch of rows that are older than age.
func (h hand) purgeOld(ctx context.Context, table string, age time.Duration, batch int) (int64, error) {
	var seqs []int64
	err := h.ask(ctx, fmt.Sprintf(`SELECT seq FROM %s WHERE at < {before $1} ORDER BY at LIMIT %d`, table, batch)+h.free(),
		[]any{micros(age)}, func(row txn.Scanner) error {
			var seq int64
			err := row.Scan(&seq)
			seqs = append(seqs, seq)
			return err
		})
	if err != nil || len(seqs) == 0 {
		return 0, err
	}
	return h.run(ctx, `{delete `+table+` PRIMARY} WHERE seq IN (`+list(seqs)+`)`)
}

// purgeConfirmations deletes a batch of the old confirmations of messages that are in no table any more.
func (h hand) purgeConfirmations(ctx context.Context, r Retention) (int64, error) {
	c := &clause{}
	err := h.ask(ctx, fmt.Sprintf(`SELECT id, grp FROM millrace_confirmations c WHERE at < {before $1}
			AND NOT EXISTS (SELECT 1 FROM millrace_outbox o WHERE o.id = c.id)
			AND NOT EXISTS (SELECT 1 FROM millrace_sent s WHERE s.id = c.id)
		ORDER BY at LIMIT %d`, r.Batch), []any{micros(r.History)}, func(row txn.Scanner) error {
		var id, group string
		err := row.Scan(&id, &group)
		c.add("(id = ? AND grp = ?)", id, group)
		return err
	})
	if err != nil || len(c.args) == 0 {
		return 0, err
	}
	return h.run(ctx, `{delete millrace_confirmations PRIMARY} WHERE `+c.any(), c.args...)
}
