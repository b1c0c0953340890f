// Command takeover moves a service from Watermill's SQL outbox to millrace's while it publishes, and back again.
//
//	export DATABASE_URL=postgres://…
//	go run ./takeover
//
// It uses the tables of the topic "takeover_example". In a real service each step is a deployment; read steps.go for what
// is in them.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err == nil {
		err = run(ctx, db, func(who string) message.Publisher { return console(who) })
		_ = db.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "takeover:", err)
		os.Exit(1)
	}
}

// console is a broker that prints who sent what.
type console string

func (c console) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		fmt.Printf("%-9s sent %s to %s\n", string(c), strings.TrimSpace(string(msg.Payload)), topic)
	}
	return nil
}

func (console) Close() error { return nil }
