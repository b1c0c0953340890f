package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/millrace-go/millrace/internal/meta"
)

// MetaReplayOf is the metadata of a message replayed with changes: the id of the one that died.
const MetaReplayOf = meta.Prefix + "replay_of"

// Order is a decision of an operator about many letters.
type Order struct {
	// Filter chooses the letters. They are listed once, before the first is touched: what dies
	// meanwhile, also of those that are replayed, is not among them.
	Filter Filter
	// Letters, if not nil, are the chosen ones, such as Report.Letters of a dry run; of Filter only
	// Group is used then.
	Letters []int64
	// Limit is how many letters at most. Default 1000.
	Limit int
	// Batch is how many are decided in one step. Default 100.
	Batch int
	// PerSecond is how many are decided per second. Default 0: as fast as it goes.
	PerSecond int
	// DryRun only reports which letters are chosen.
	DryRun bool
	// Who decided, and why: for the audit. Not needed for a dry run.
	Who, Why string
}

// Report is what became of an Order.
type Report struct {
	// Letters are those that were chosen.
	Letters []int64
	// Done is how many were decided; Gone how many somebody else had decided before.
	Done, Gone int
}

// Replay gives the chosen letters back to their handler, and to it alone. They get there by
// delayed.Subscriber, as fast as that takes them. When ctx ends or the store fails, the report says how
// far it came; the rest is untouched and may be ordered again by Report.Letters.
func Replay(ctx context.Context, s Dead, o Order) (Report, error) { return o.run(ctx, s, Replayed) }

// Discard removes the chosen letters for good. See Replay.
func Discard(ctx context.Context, s Dead, o Order) (Report, error) { return o.run(ctx, s, Discarded) }

func (o Order) run(ctx context.Context, s Dead, action Action) (r Report, err error) {
	if err := o.prepare(); err != nil {
		return r, err
	}
	if r.Letters, err = o.chosen(ctx, s); err != nil || o.DryRun {
		return r, err
	}
	begin := time.Now()
	for batch := range slices.Chunk(r.Letters, o.Batch) {
		if err := pace(ctx, begin, r.Done+r.Gone, o.PerSecond); err != nil {
			return r, err
		}
		done, err := s.Decide(ctx, Decision{Group: o.Filter.Group, Action: action, Letters: batch, Who: o.Who, Why: o.Why})
		if err != nil {
			return r, fmt.Errorf("store: %s, after %d of %d: %w", action, r.Done, len(r.Letters), err)
		}
		r.Done += len(done)
		r.Gone += len(batch) - len(done)
	}
	return r, nil
}

// prepare checks the order and sets what has a default.
func (o *Order) prepare() error {
	errs := []error{CheckGroup(o.Filter.Group)}
	if !o.DryRun {
		errs = append(errs, checkAuthor(o.Who, o.Why))
	}
	if o.Limit < 0 || o.Batch < 0 || o.PerSecond < 0 {
		errs = append(errs, errors.New("store: Limit, Batch and PerSecond must not be negative"))
	}
	if o.Limit == 0 {
		o.Limit = 1000
	}
	if o.Batch == 0 {
		o.Batch = 100
	}
	if o.PerSecond > 0 {
		o.Batch = min(o.Batch, o.PerSecond)
	}
	return errors.Join(errs...)
}

// chosen lists the letters.
func (o Order) chosen(ctx context.Context, s Dead) ([]int64, error) {
	if o.Letters != nil {
		return o.Letters[:min(len(o.Letters), o.Limit)], nil
	}
	var ids []int64
	for after := int64(0); len(ids) < o.Limit; {
		page, err := s.List(ctx, o.Filter, after, min(500, o.Limit-len(ids)))
		if err != nil {
			return nil, fmt.Errorf("store: list dead letters: %w", err)
		}
		if len(page) == 0 {
			break
		}
		for _, l := range page {
			ids = append(ids, l.ID)
		}
		after = page[len(page)-1].ID
	}
	return ids, nil
}

// pace waits until n letters may have been decided.
func pace(ctx context.Context, begin time.Time, n, perSecond int) error {
	if perSecond == 0 || n == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(perSecond))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Edit is what is changed about a letter that is replayed.
type Edit struct {
	// Payload, if not nil, takes the place of the letter's.
	Payload []byte
	// Metadata, if not nil, takes the place of the letter's.
	Metadata map[string]string
}

// ReplayEdited replays a letter with changes. What comes back is another message: it has a new id,
// which is returned, and the metadata MetaReplayOf names the old one. The letter is removed, or, if
// it is gone, the error is ErrNotFound. A letter that cannot be read is replayed only with all of its
// metadata in edit, and without an order key if that could not be read.
func ReplayEdited(ctx context.Context, s Dead, group string, letter int64, edit Edit, who, why string) (string, error) {
	if err := errors.Join(CheckGroup(group), checkAuthor(who, why)); err != nil {
		return "", err
	}
	l, err := s.Get(ctx, group, letter)
	if err != nil {
		return "", err
	}
	if l.Unreadable != nil && edit.Metadata == nil {
		return "", fmt.Errorf("store: replay edited: %w: give all of its metadata", l.Unreadable)
	}
	e := l.Entry
	e.Metadata = maps.Clone(e.Metadata)
	if edit.Metadata != nil {
		e.Metadata = maps.Clone(edit.Metadata)
	}
	if edit.Payload != nil {
		e.Payload = edit.Payload
	}
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[MetaReplayOf] = e.MessageID
	e.MessageID = uuid.NewString()
	done, err := s.Decide(ctx, Decision{Group: group, Action: Replayed, Letters: []int64{letter}, Edited: &e, Who: who, Why: why})
	switch {
	case err != nil:
		return "", fmt.Errorf("store: replay edited: %w", err)
	case len(done) == 0:
		return "", ErrNotFound
	}
	return e.MessageID, nil
}
