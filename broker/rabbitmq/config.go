package rabbitmq

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Config configures a Publisher or a Subscriber. URL is required, and ConsumerGroup for a Subscriber;
// every other zero value is fit for production. What concerns only the other one is ignored.
type Config struct {
	// URL is where the broker is: amqp://user:password@host:port/vhost, or amqps. Default:
	// AMQP.Connection.AmqpURI.
	URL string
	// AMQP maps topics to exchanges, queues and bindings, in watermill-amqp's terms. The zero value
	// is amqp.NewDurablePubSubConfig: a durable fanout exchange named as the topic, and for each
	// ConsumerGroup a durable queue of its own. For plain work queues, topic = queue, use
	// amqp.NewDurableQueueConfig(""): the publisher then declares the queue too.
	//
	// Exchange, Queue, QueueBind, Publish.GenerateRoutingKey, Consume, Marshaler and TopologyBuilder
	// are used as they are, and TLSConfig and AmqpConfig of Connection. Publish.Mandatory and
	// Publish.ConfirmDelivery are always on; Transactional and Immediate are refused. With
	// Consume.NoRequeueOnNack a nacked message is dead-lettered at once; what is in hand when the
	// subscriber ends goes back to the queue all the same. What a Marshaler is given, it must not change.
	AMQP amqp.Config
	// Quorum declares queues as quorum queues.
	Quorum bool
	// SkipTopology declares nothing: exchanges, queues and bindings are somebody else's.
	SkipTopology bool
	// Logger gets outages and what is recovered from. It never gets payloads, metadata or passwords.
	// Default: nothing is logged.
	Logger *slog.Logger

	// Timeout bounds each wait for the broker: for the connection, for an answer, for the next
	// confirm of a batch (a quarter more at most). Default 10 s.
	Timeout time.Duration
	// MaxMessageBytes is the size of a body above which a message is refused without being sent.
	// Default 16 MiB, RabbitMQ's own limit since version 4.
	MaxMessageBytes int
	// Channels is how many batches are sent at a time; each has a channel of its own. Default 8.
	Channels int
	// Window is how many messages of a batch may wait for their confirms. Default 1000.
	Window int

	// ConsumerGroup names the consumers that share a topic's messages: the queue is called
	// topic_group. Needed unless AMQP.Queue.GenerateName is set.
	ConsumerGroup string
	// Concurrency is how many messages a subscription hands out before the first is acknowledged
	// (AMQP's prefetch count). With 1 they come strictly one after the other. Default:
	// AMQP.Consume.Qos.PrefetchCount if AMQP is set and has one, or else 10.
	Concurrency int
	// NackDelay is how long a nacked message waits before it comes again; it doubles with each nack of
	// the message, up to 32 times. A handler's error may ask for more, up to a minute
	// (middleware.RetryAfter). Default 500 ms.
	NackDelay time.Duration
	// CloseTimeout is how long handlers may go on after Close or the end of Subscribe's context; after
	// that their messages' contexts are cancelled and their messages go back to the queue. Default 10 s.
	CloseTimeout time.Duration
}

// maxNackFactor bounds how long NackDelay can become.
const maxNackFactor = 32

func (c Config) withDefaults() (Config, error) {
	custom := c.AMQP.Exchange.GenerateName != nil || c.AMQP.Queue.GenerateName != nil
	if c.Concurrency == 0 && custom {
		c.Concurrency = c.AMQP.Consume.Qos.PrefetchCount
	}
	if c.URL == "" {
		c.URL = c.AMQP.Connection.AmqpURI
	}
	err := c.problems()
	c.AMQP = c.topology()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, n := range []struct {
		field *int
		value int
	}{{&c.MaxMessageBytes, 16 << 20}, {&c.Channels, 8}, {&c.Window, 1000}, {&c.Concurrency, 10}} {
		if *n.field == 0 {
			*n.field = n.value
		}
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Timeout, 10 * time.Second}, {&c.NackDelay, 500 * time.Millisecond}, {&c.CloseTimeout, 10 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c, err
}

// problems returns all that is wrong, for publishers and subscribers alike.
func (c Config) problems() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("rabbitmq: "+format, args...))
	}
	if c.URL == "" {
		bad("URL is missing, such as amqp://user:password@host:5672/vhost")
	} else if _, err := amqp091.ParseURI(c.URL); err != nil {
		// The parser's error quotes the URL, and with it the password.
		bad("URL is none of AMQP, such as amqp://user:password@host:5672/vhost (special characters percent-encoded)")
	}
	for name, n := range map[string]int{
		"MaxMessageBytes": c.MaxMessageBytes, "Channels": c.Channels, "Window": c.Window, "Concurrency": c.Concurrency,
		"Timeout": int(c.Timeout), "NackDelay": int(c.NackDelay), "CloseTimeout": int(c.CloseTimeout),
	} {
		if n < 0 {
			bad("%s is negative", name)
		}
	}
	if c.Concurrency > 1<<16-1 {
		bad("Concurrency is %d, AMQP allows 65535", c.Concurrency)
	}
	if c.AMQP.Publish.Transactional {
		bad("AMQP.Publish.Transactional is not supported: publisher confirms are always on")
	}
	if c.AMQP.Publish.Immediate {
		bad("AMQP.Publish.Immediate is not supported by RabbitMQ")
	}
	if (c.AMQP.Exchange.GenerateName != nil) != (c.AMQP.Publish.GenerateRoutingKey != nil) {
		bad("AMQP needs Exchange.GenerateName and Publish.GenerateRoutingKey together, or neither")
	}
	if q := c.AMQP.Queue.Arguments["x-queue-type"]; c.Quorum && q != nil && q != "quorum" {
		bad("Quorum is set, and AMQP.Queue.Arguments asks for another x-queue-type")
	}
	return errors.Join(errs...)
}

// topology fills in what the user left open.
func (c Config) topology() amqp.Config {
	a := c.AMQP
	standard := amqp.NewDurablePubSubConfig("", nil)
	if a.Exchange.GenerateName == nil {
		a.Exchange, a.Publish.GenerateRoutingKey = mergeExchange(a.Exchange, standard.Exchange), standard.Publish.GenerateRoutingKey
	}
	if a.QueueBind.GenerateRoutingKey == nil {
		a.QueueBind.GenerateRoutingKey = standard.QueueBind.GenerateRoutingKey
	}
	if a.Queue.GenerateName == nil {
		a.Queue.Durable = true
		if c.ConsumerGroup != "" {
			a.Queue.GenerateName = amqp.GenerateQueueNameTopicNameWithSuffix(c.ConsumerGroup)
		}
	}
	if c.Quorum {
		a.Queue.Arguments = maps.Clone(a.Queue.Arguments)
		if a.Queue.Arguments == nil {
			a.Queue.Arguments = amqp091.Table{}
		}
		a.Queue.Arguments["x-queue-type"] = "quorum"
	}
	if a.Marshaler == nil {
		a.Marshaler = Marshaler{}
	}
	if a.TopologyBuilder == nil {
		a.TopologyBuilder = &amqp.DefaultTopologyBuilder{}
	}
	return a
}

// mergeExchange keeps the arguments that the user set, for an alternate exchange, say.
func mergeExchange(given, standard amqp.ExchangeConfig) amqp.ExchangeConfig {
	if given.Type != "" {
		standard.Type = given.Type
	}
	standard.Arguments = given.Arguments
	return standard
}

// place is the broker's address without user and password, for errors and logs.
func (c Config) place() string {
	uri, err := amqp091.ParseURI(c.URL)
	if err != nil {
		return "the broker"
	}
	return net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)) + "/" + uri.Vhost
}
