package main

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	peer "github.com/oagudo/outbox"
)

// github.com/oagudo/outbox leaves the publisher to its user; it gets millrace's. With its defaults it
// moves 100 messages in 10 s, so it is only measured with settings that let it work without pause.

const oagudoTable = `CREATE TABLE outbox (
	id UUID PRIMARY KEY,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	scheduled_at TIMESTAMP WITH TIME ZONE NOT NULL,
	metadata BYTEA,
	payload BYTEA NOT NULL,
	times_attempted INTEGER NOT NULL
);
CREATE INDEX idx_outbox_created_at ON outbox (created_at);
CREATE INDEX idx_outbox_scheduled_at ON outbox (scheduled_at);`

func fillOagudo(ctx context.Context, d database, n int) error {
	conn, err := pgx.Connect(ctx, d.URL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, oagudoTable); err != nil {
		return err
	}
	created := time.Now().Add(-time.Hour).UTC()
	_, err = conn.CopyFrom(ctx, pgx.Identifier{"outbox"},
		[]string{"id", "created_at", "scheduled_at", "metadata", "payload", "times_attempted"},
		pgx.CopyFromSlice(n, func(seq int) ([]any, error) {
			msg := newMessage(seq, 0)
			metadata, err := json.Marshal(msg.Metadata)
			at := created.Add(time.Duration(seq) * time.Millisecond)
			return []any{uuid.MustParse(msg.UUID), at, at, metadata, []byte(msg.Payload), int32(0)}, err
		}))
	return err
}

// oagudoPublisher sends to one topic.
type oagudoPublisher struct {
	message.Publisher
	topic string
	n     atomic.Int64
}

func (p *oagudoPublisher) Publish(ctx context.Context, m *peer.Message) error {
	msg := message.NewMessageWithContext(ctx, m.ID.String(), m.Payload)
	if err := json.Unmarshal(m.Metadata, &msg.Metadata); err != nil {
		return err
	}
	err := p.Publisher.Publish(p.topic, msg)
	if err == nil {
		p.n.Add(1)
	}
	return err
}

func drainOagudo(ctx context.Context, p params, begin func()) (Sample, error) {
	db, err := openSQL(p.DB)
	if err != nil {
		return Sample{}, err
	}
	defer db.Close()
	pub, err := p.Broker.ours(warnings())
	if err != nil {
		return Sample{}, err
	}
	out := &oagudoPublisher{Publisher: pub, topic: p.Broker.Topic}
	reader := peer.NewReader(peer.NewDBContext(db, peer.SQLDialectPostgres), out,
		peer.WithInterval(time.Millisecond), peer.WithReadBatchSize(1000), peer.WithDeleteBatchSize(1000))
	begin()
	reader.Start()
	s, err := drained(ctx, p, func() int { return int(out.n.Load()) })
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if stopped := reader.Stop(limit); !errors.Is(stopped, context.DeadlineExceeded) {
		err = errors.Join(err, stopped)
	}
	return s, errors.Join(err, pub.Close())
}
