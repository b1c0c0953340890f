package main

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The books are checked by run.
func TestEveryGrantedRefundIsExecutedOnceAndConfirmed(t *testing.T) {
	for name, real := range map[string]func(t *testing.T, cfg *config){
		"in this process": func(*testing.T, *config) {},
		"postgres and rabbitmq": func(t *testing.T, cfg *config) {
			cfg.refunds, cfg.payments, cfg.broker = testenv.Postgres(t), testenv.Postgres(t), testenv.RabbitMQ(t)
		},
		"postgres and redis": func(t *testing.T, cfg *config) {
			cfg.refunds, cfg.payments, cfg.broker = testenv.Postgres(t), testenv.Postgres(t), testenv.Redis(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config{requests: 40, deadline: 500 * time.Millisecond, away: time.Second}
			real(t, &cfg)
			var page bytes.Buffer
			require.NoError(t, run(t.Context(), cfg, &page), page.String())
			require.Contains(t, page.String(), "granted                                36")
			require.Contains(t, page.String(), "2 refunds are with the operator")
		})
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	_, err := parse([]string{"-requests", "0"}, io.Discard)
	require.Error(t, err)
	cfg, err := parse(nil, io.Discard)
	require.NoError(t, err)
	require.Equal(t, 200, cfg.requests)
}
