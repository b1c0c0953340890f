package rabbitmq

import (
	"context"
	"errors"
	"strings"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// session is one consumer on one channel, for as long as it lasts.
type session struct {
	conn       *connection
	ch         *amqp091.Channel
	tag        string
	deliveries <-chan amqp091.Delivery // closed with the session, and when the broker cancels the consumer
}

func (c Config) queueParams(topic string) amqp.BuildTopologyParams {
	return amqp.BuildTopologyParams{
		Topic:        topic,
		QueueName:    c.AMQP.Queue.GenerateName(topic),
		ExchangeName: c.AMQP.Exchange.GenerateName(topic),
		RoutingKey:   c.AMQP.QueueBind.GenerateRoutingKey(topic),
	}
}

// openSession declares the queue and starts to consume.
func openSession(ctx context.Context, conn *connection, params amqp.BuildTopologyParams) (*session, error) {
	if err := declareQueue(ctx, conn, params); err != nil {
		return nil, err
	}
	consume := conn.config.AMQP.Consume
	s := &session{conn: conn, tag: consume.Consumer}
	if s.tag == "" {
		s.tag = "millrace-" + watermill.NewShortUUID()
	}
	ch, err := conn.channel(ctx, func(ch *amqp091.Channel) error {
		err := ch.Qos(conn.config.Concurrency, consume.Qos.PrefetchSize, false)
		if err == nil {
			s.deliveries, err = ch.Consume(params.QueueName, s.tag, false, consume.Exclusive, consume.NoLocal, false, consume.Arguments)
		}
		return err
	})
	if err != nil {
		return nil, consumeError(err)
	}
	s.ch = ch
	return s, nil
}

func declareQueue(ctx context.Context, conn *connection, params amqp.BuildTopologyParams) error {
	if conn.config.SkipTopology {
		return nil
	}
	return consumeError(conn.onThrowaway(ctx, func(ch *amqp091.Channel) error {
		return conn.config.AMQP.TopologyBuilder.BuildTopology(ch, params, conn.config.AMQP, watermill.NopLogger{})
	}))
}

// consumeError tells what no waiting mends.
func consumeError(err error) error {
	var e *amqp091.Error
	if !errors.As(err, &e) || !e.Server {
		return err
	}
	switch {
	case e.Code == amqp091.PreconditionFailed:
		return &setupError{err, "the exchange or queue exists with other properties: correct Config.AMQP, or delete it"}
	case e.Code == amqp091.AccessRefused && !strings.Contains(e.Reason, "exclusive"):
		return &setupError{err, "grant the user the rights to configure, write and read exchange and queue, or set Config.SkipTopology"}
	case e.Code == amqp091.NotFound:
		return &setupError{err, "create exchange and queue, or unset Config.SkipTopology"}
	}
	return err
}

// cancel stops the deliveries; what was delivered can still be acknowledged.
func (s *session) cancel() {
	s.conn.wg.Go(func() {
		// No context: it is because one has ended that we are here. call bounds it.
		_ = s.conn.call(context.Background(), func() error { return s.ch.Cancel(s.tag, false) })
	})
}

// close gives what is not acknowledged back to the queue.
func (s *session) close() {
	s.conn.discard(s.ch)
}
