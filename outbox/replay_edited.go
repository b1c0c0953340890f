package outbox

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/txn"
)

// MetadataReplaces is the metadata of an edited message that holds the id of the one that it was made of.
const MetadataReplaces = meta.Prefix + "replaces"

// ReplayEdited publishes msg in the place of the dead message with an id, which is deleted. msg must have
// an id of its own, because consumers may have seen the other one; its metadata MetadataReplaces, and the
// history of both, tell of the other. An empty topic is that of the dead message. Delay, schedule name and
// key are what msg says. See Find for the content to begin with.
func (b *Box) ReplayEdited(ctx context.Context, by By, id, topic string, msg *message.Message) error {
	if err := by.check(); err != nil {
		return err
	}
	if msg != nil && msg.UUID == id {
		return fmt.Errorf("%w: an edited message needs an id of its own", ErrInvalidMessage)
	}
	var lanes uint64
	err := b.byHand(ctx, "edit", func(h hand) error {
		var seq int64
		was := ""
		err := h.ask(ctx, `SELECT seq, topic {from millrace_dead millrace_dead_id} WHERE id = $1 ORDER BY seq DESC LIMIT 1`+h.free(), []any{id},
			func(row txn.Scanner) error { return row.Scan(&seq, &was) })
		if err == nil && seq == 0 {
			err = fmt.Errorf("%w: dead message %q", ErrNotFound, id)
		}
		if err != nil {
			return err
		}
		if topic == "" {
			topic = was
		}
		entries, err := b.encode(ctx, topic, msg)
		if err != nil {
			return err
		}
		lanes = lanesOf(entries)
		return h.edit(ctx, by, seq, id, entries)
	})
	if err == nil {
		b.wakes.signal(lanes)
	}
	return err
}

func (h hand) edit(ctx context.Context, by By, seq int64, id string, entries []entry) (err error) {
	e := &entries[0]
	if e.metadata, err = withMetadata(e.metadata, MetadataReplaces, id); err != nil {
		return err
	}
	for _, s := range insertions(h.kind, h.box.cfg.Prefix, entries) {
		n, err := h.Exec(ctx, s.SQL, s.Args...)
		if err := s.Check(n, err); err != nil {
			return err
		}
	}
	if _, err := h.run(ctx, `DELETE FROM millrace_dead WHERE seq = $1`, seq); err != nil {
		return err
	}
	if err := h.event(ctx, []string{id}, eventEdited, e.id, by); err != nil {
		return err
	}
	if err := h.event(ctx, []string{e.id}, eventEdit, id, by); err != nil {
		return err
	}
	_, err = h.audit(ctx, by, "edit", map[string]string{"id": id, "new_id": e.id}, 1, true)
	return err
}

func withMetadata(text, name, value string) (string, error) {
	m := map[string]string{}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return "", err
	}
	m[name] = value
	out, err := json.Marshal(m)
	return string(out), err
}
