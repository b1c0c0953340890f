package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"
)

// config says what to run on and how much of it. The parent fills it in and hands it to its children.
type config struct {
	DB     string // postgres://…, or the folder of the SQLite files
	Broker string // amqp://… or redis://…
	Dedup  string // redis://…

	Orders int
	Rate   int // orders a second, 0 = as fast as the database takes them
	Kills  int

	Run   string // names what this run creates on a server
	Topic string
	Lease time.Duration // of the forwarder: how long its lanes stay with a dead one
	Name  string        // of this process
}

const usage = `An order service whose forwarder is killed again and again, and a count at the end.

  go run ./demo                     SQLite and an in-process Redis: needs nothing but Go
  go run ./demo -db postgres://user:password@host/database -broker amqp://user:password@host/vhost -dedup redis://host
  go run ./demo -real               PostgreSQL with RabbitMQ, then with Redis, as the test harness starts them

MILLRACE_DEMO_DB, MILLRACE_DEMO_BROKER and MILLRACE_DEMO_DEDUP stand in for -db, -broker and -dedup.
On a server the demo works in a schema, exchange and streams of its own, and removes them. What Redis remembers of handled
messages expires within a day.

`

// parse reads the command line. An empty value means the default, so that make can pass on what is not set.
func parse(args []string, stderr io.Writer) (cfg config, real bool, err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage); flags.PrintDefaults() }
	flags.StringVar(&cfg.DB, "db", "", "`url` of the database: postgres://… (default SQLite in a temporary folder)")
	flags.StringVar(&cfg.Broker, "broker", "", "`url` of the broker: amqp://… or redis://… (default an in-process Redis)")
	flags.StringVar(&cfg.Dedup, "dedup", "", "`url` of the Redis that remembers what was handled: redis://… (default that of the broker, or in process)")
	flags.IntVar(&cfg.Orders, "orders", 4000, "how many orders are placed; 10000 with -real")
	flags.IntVar(&cfg.Rate, "rate", 250, "orders a second, 0 = as fast as they go; 0 with -real")
	flags.IntVar(&cfg.Kills, "kills", 6, "how often the forwarder is killed")
	flags.BoolVar(&real, "real", false, "run twice on the servers named by MILLRACE_TEST_POSTGRES_URL, MILLRACE_TEST_RABBITMQ_URL and MILLRACE_TEST_REDIS_URL")
	if err := flags.Parse(args); err != nil {
		return cfg, real, err
	}
	// Not as the flags' defaults: -h would print them, passwords too.
	cfg.DB = cmp.Or(cfg.DB, os.Getenv("MILLRACE_DEMO_DB"))
	cfg.Broker = cmp.Or(cfg.Broker, os.Getenv("MILLRACE_DEMO_BROKER"))
	cfg.Dedup = cmp.Or(cfg.Dedup, os.Getenv("MILLRACE_DEMO_DEDUP"))
	if real {
		given := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		if !given["orders"] {
			cfg.Orders = 10000
		}
		if !given["rate"] {
			cfg.Rate = 0
		}
	}
	if flags.NArg() > 0 {
		return cfg, real, fmt.Errorf("unknown argument %q; see -h", flags.Arg(0))
	}
	if cfg.DB == "sqlite" {
		cfg.DB = ""
	}
	cfg.Lease = 500 * time.Millisecond
	return cfg, real, cfg.check()
}

func (c config) check() error {
	var wrong []error
	expect := func(option, value string, schemes ...string) {
		if value == "" {
			return
		}
		scheme, _, _ := strings.Cut(value, "://")
		for _, s := range schemes {
			if scheme == s {
				return
			}
		}
		// The value is not repeated: it may hold a password.
		wrong = append(wrong, fmt.Errorf("%s wants a URL that begins with %s://", option, strings.Join(schemes, ":// or ")))
	}
	expect("-db", c.DB, "postgres", "postgresql")
	expect("-broker", c.Broker, "amqp", "amqps", "redis", "rediss")
	expect("-dedup", c.Dedup, "redis", "rediss")
	if c.Orders < 1 || c.Rate < 0 || c.Kills < 0 {
		wrong = append(wrong, errors.New("-orders is at least 1, -rate and -kills are not negative"))
	}
	return errors.Join(wrong...)
}

// onPostgres and onRabbitMQ tell the two choices of servers apart.
func (c config) onPostgres() bool { return strings.HasPrefix(c.DB, "postgres") }
func (c config) onRabbitMQ() bool { return strings.HasPrefix(c.Broker, "amqp") }

// path names the stations of a message, for people.
func (c config) path() string {
	db, broker := "SQLite", "Redis Streams"
	if c.onPostgres() {
		db = "PostgreSQL"
	}
	if c.onRabbitMQ() {
		broker = "RabbitMQ"
	}
	return db + " → forwarder → " + broker + " → billing ×2"
}

// withoutURL is err without the URL that a parser repeats, password and all.
func withoutURL(err error) error {
	var bad *url.Error
	if errors.As(err, &bad) {
		return fmt.Errorf("not a URL: %w", bad.Err)
	}
	return err
}
