package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// PauseKind is what is paused.
type PauseKind string

const (
	// PausedTopic keeps the messages of a topic in the outbox.
	PausedTopic PauseKind = "topic"
	// PausedDestination keeps all that is to go to a destination of the forwarder in the outbox.
	PausedDestination PauseKind = "destination"
)

func (k PauseKind) check(name string) error {
	if k != PausedTopic && k != PausedDestination {
		return fmt.Errorf("outbox: there is no %q to pause", k)
	}
	if err := checkText("the name of a "+string(k), name, 1, maxTopic); err != nil {
		return fmt.Errorf("outbox: pause: %w", err)
	}
	return nil
}

// Pause is a topic or a destination to which nothing is sent now, and who wants it so.
type Pause struct {
	Kind  PauseKind
	Name  string
	By    By
	Since time.Time
}

// Pause keeps the messages of a topic, or to a destination, in the outbox until Resume. It is stored, and
// all forwarders obey within about a second; what they have begun to send is finished. Pausing again
// changes who and why.
func (b *Box) Pause(ctx context.Context, by By, kind PauseKind, name string) error {
	return b.setPause(ctx, by, "pause", kind, name, func(h hand, was int64) error {
		_, err := h.run(ctx, `INSERT INTO millrace_pauses (kind, name, who, why, since) VALUES ($1, $2, $3, $4, {now})`,
			string(kind), name, clip(by.Who, 200), clip(by.Why, 1000))
		return err
	})
}

// Resume ends a pause. ErrNotFound means that there is none.
func (b *Box) Resume(ctx context.Context, by By, kind PauseKind, name string) error {
	return b.setPause(ctx, by, "resume", kind, name, func(_ hand, was int64) error {
		if was == 0 {
			return fmt.Errorf("%w: pause of %s %q", ErrNotFound, kind, name)
		}
		return nil
	})
}

func (b *Box) setPause(ctx context.Context, by By, action string, kind PauseKind, name string, then func(h hand, was int64) error) error {
	if err := by.check(); err != nil {
		return err
	}
	if err := kind.check(name); err != nil {
		return err
	}
	err := b.byHand(ctx, action, func(h hand) error {
		was, err := h.run(ctx, `DELETE FROM millrace_pauses WHERE kind = $1 AND name = $2`, string(kind), name)
		if err != nil {
			return err
		}
		if err := then(h, was); err != nil {
			return err
		}
		_, err = h.audit(ctx, by, action, map[string]string{"kind": string(kind), "name": name}, 0, true)
		return err
	})
	if err == nil {
		b.wakes.signal(1<<Lanes - 1)
	}
	return err
}

// Pauses lists what is paused.
func (b *Box) Pauses(ctx context.Context) (all []Pause, err error) {
	err = b.store.once(ctx, "pauses", `SELECT kind, name, who, why, {us since} FROM millrace_pauses ORDER BY kind, name`, nil,
		func(row txn.Scanner) error {
			var p Pause
			var since int64
			err := row.Scan(&p.Kind, &p.Name, &p.By.Who, &p.By.Why, &since)
			p.Since = unixMicro(&since)
			all = append(all, p)
			return err
		})
	return all, err
}
