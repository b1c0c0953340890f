package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestEachOrderIsBilledOnce runs the shop and two billing services as main does.
func TestEachOrderIsBilledOnce(t *testing.T) {
	t.Parallel()
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	databaseURL, amqpURL, redisURL := testenv.Postgres(t), testenv.RabbitMQ(t), testenv.Redis(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)

	var mu sync.Mutex
	bills := map[string]int{}
	bill := func(_ context.Context, order OrderPlaced) error {
		mu.Lock()
		defer mu.Unlock()
		bills[order.ID]++
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return runShop(ctx, databaseURL, amqpURL, listener, log) })
	for range 2 {
		g.Go(func() error { return runBilling(ctx, amqpURL, redisURL, log, bill) })
	}

	const orders = 20
	for range orders {
		require.Equal(t, http.StatusCreated, post(t, listener, "4200"))
	}
	require.Equal(t, http.StatusBadRequest, post(t, listener, "much"))

	testenv.Eventually(t, 2*time.Minute, "a bill for each order", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(bills) == orders || ctx.Err() != nil
	})
	stop()
	require.NoError(t, g.Wait())
	for id, n := range bills {
		require.Equal(t, 1, n, "bills of order %s", id)
	}
}

func post(t *testing.T, shop net.Listener, amount string) (status int) {
	t.Helper()
	form := url.Values{"amount": {amount}}.Encode()
	res, err := http.Post("http://"+shop.Addr().String()+"/orders", "application/x-www-form-urlencoded", strings.NewReader(form))
	require.NoError(t, err)
	defer res.Body.Close()
	return res.StatusCode
}
