package main

import (
	"context"
	"fmt"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/meta"
)

// What the servers allow, measured alone: no outbox can be faster than the slower of the two.

// rawInFlight is how many messages wait for the broker's answer; more gained nothing.
const rawInFlight = 1000

// message is one that asks for a confirmation, if there is where to send it.
func (p params) message(seq int) *message.Message {
	msg := newMessage(seq, 0)
	if p.Words != "" {
		msg.Metadata[meta.Confirm] = p.Words
	}
	return msg
}

// rawBroker sends messages out of memory.
func rawBroker(ctx context.Context, p params, begin func()) (Sample, error) {
	if p.Broker.Kind == streams {
		return rawStreams(ctx, p, begin)
	}
	conn, err := amqp.Dial(p.Broker.URL)
	if err != nil {
		return Sample{}, err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return Sample{}, err
	}
	if err := ch.Confirm(false); err != nil {
		return Sample{}, err
	}
	all := make([]amqp.Publishing, p.N)
	for i := range all {
		msg := p.message(i)
		headers := amqp.Table{"_watermill_message_uuid": msg.UUID}
		for k, v := range msg.Metadata {
			headers[k] = v
		}
		all[i] = amqp.Publishing{Headers: headers, Body: msg.Payload, DeliveryMode: amqp.Persistent}
	}
	begin()
	confirms := make(chan *amqp.DeferredConfirmation, rawInFlight)
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for c := range confirms {
			if acked, err := c.WaitContext(ctx); err != nil || !acked {
				failed <- fmt.Errorf("not confirmed: %w", err)
				return
			}
		}
	}()
	for i := range all {
		c, err := ch.PublishWithDeferredConfirm("", p.Broker.Topic, true, false, all[i])
		if err != nil {
			return Sample{}, err
		}
		confirms <- c
	}
	close(confirms)
	return Sample{Moved: p.N}, <-failed
}

// rawStreams pipelines XADDs, two pipelines of 500 at a time.
func rawStreams(ctx context.Context, p params, begin func()) (Sample, error) {
	client, err := p.Broker.redis()
	if err != nil {
		return Sample{}, err
	}
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return Sample{}, err
	}
	all := make([]map[string]any, p.N)
	for i := range all {
		if all[i], err = (wmredis.DefaultMarshallerUnmarshaller{}).Marshal("", p.message(i)); err != nil {
			return Sample{}, err
		}
	}
	begin()
	const each = 500
	slots, failed := make(chan struct{}, 2), make(chan error, len(all)/each+1)
	for from := 0; from < len(all); from += each {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				for _, values := range all[from:min(from+each, len(all))] {
					pipe.XAdd(ctx, &redis.XAddArgs{Stream: p.Broker.Topic, Values: values})
				}
				return nil
			})
			if err != nil {
				failed <- err
			}
		}()
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	close(failed)
	return Sample{Moved: p.N}, <-failed
}

// rawDatabase reads millrace's table from the bottom and deletes what it has read: a cursor, no lanes,
// no leases, no broker.
func rawDatabase(ctx context.Context, p params, begin func()) (Sample, error) {
	conn, err := pgx.Connect(ctx, p.DB.URL)
	if err != nil {
		return Sample{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	begin()
	s, last := Sample{}, int64(0)
	for s.Moved < p.N {
		rows, err := conn.Query(ctx, `SELECT pos, id, topic, metadata, payload FROM millrace_outbox
			WHERE pos > $1 ORDER BY pos LIMIT 1000`, last)
		if err != nil {
			return s, err
		}
		var id, topic, metadata string
		var payload []byte
		from, n := last, 0
		_, err = pgx.ForEachRow(rows, []any{&last, &id, &topic, &metadata, &payload}, func() error { n++; return nil })
		if err != nil {
			return s, err
		}
		if n == 0 {
			return s, fmt.Errorf("%d rows missing", p.N-s.Moved)
		}
		if _, err := conn.Exec(ctx, `DELETE FROM millrace_outbox WHERE pos > $1 AND pos <= $2`, from, last); err != nil {
			return s, err
		}
		s.Moved += n
	}
	return s, nil
}
