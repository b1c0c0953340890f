package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

// OrderPlaced is what the shop tells the world.
type OrderPlaced struct {
	ID     string `json:"id"`
	Amount int    `json:"amount"` // cents
}

// runShop takes orders over HTTP until ctx ends, and forwards what they publish.
func runShop(ctx context.Context, databaseURL, amqpURL string, listener net.Listener, log *slog.Logger) error {
	sqlDB, err := sql.Open("pgx", databaseURL)
	if err != nil {
		return err
	}
	defer sqlDB.Close()
	sqlDB.SetMaxIdleConns(10) // the default of two connects anew all the time
	if err := createTables(ctx, sqlDB); err != nil {
		return err
	}

	db := millrace.SQL(sqlDB) // or pgxtx.Pool(pool)
	box, err := outbox.New(db, outbox.Config{})
	if err != nil {
		return err
	}
	pub, err := rabbitmq.NewPublisher(rabbitmq.Config{URL: amqpURL}) // or redisstreams, or any Watermill publisher
	if err != nil {
		return err
	}
	defer pub.Close()
	fwd, err := forwarder.New(box, pub, forwarder.Config{})
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(log))
	if err != nil {
		return err
	}
	router.AddPlugin(fwd.Plugin) // or: fwd.Run(ctx)

	server := &http.Server{Handler: orders(db, box), ReadHeaderTimeout: 5 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return millrace.RunRouter(ctx, router) })
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return server.Shutdown(ctx)
	})
	return g.Wait()
}

// orders serves POST /orders.
func orders(db *millrace.SQLDB, box *outbox.Box) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		amount, err := strconv.Atoi(r.FormValue("amount"))
		if err != nil || amount <= 0 {
			http.Error(w, "amount is a number of cents", http.StatusBadRequest)
			return
		}
		id, err := placeOrder(r.Context(), db, box, amount)
		if err != nil {
			http.Error(w, "the order was not placed", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, id)
	})
	return mux
}

// placeOrder stores an order and says so, or does neither.
func placeOrder(ctx context.Context, db *millrace.SQLDB, box *outbox.Box, amount int) (id string, err error) {
	id = watermill.NewUUID()
	payload, err := json.Marshal(OrderPlaced{ID: id, Amount: amount})
	if err != nil {
		return "", err
	}
	msg := message.NewMessage(watermill.NewUUID(), payload)

	err = millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO orders (id, amount) VALUES ($1, $2)`, id, amount); err != nil {
			return err
		}
		return box.Publish(ctx, "orders.placed", msg)
	})
	return id, err
}

// createTables makes the shop's table and the outbox. A larger service does this in its deployment.
func createTables(ctx context.Context, sqlDB *sql.DB) error {
	_, err := sqlDB.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, amount bigint NOT NULL)`)
	if err != nil {
		return err
	}
	return millrace.Migrate(ctx, millrace.SQL(sqlDB), outbox.Migrations())
}
