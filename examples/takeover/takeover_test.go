package main

import (
	"database/sql"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type sent struct{ who, order string }

// TestEachOrderIsSentOnceOnTheWayThereAndBack runs the program.
func TestEachOrderIsSentOnceOnTheWayThereAndBack(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("pgx", testenv.Postgres(t))
	require.NoError(t, err)
	defer db.Close()
	var mu sync.Mutex
	var all []sent
	require.NoError(t, run(t.Context(), db, func(who string) message.Publisher {
		return recorder(func(order string) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, sent{who, order})
		})
	}))
	require.ElementsMatch(t, []sent{
		{"watermill", "order-1"}, {"watermill", "order-2"},
		{"millrace", "order-3"}, {"millrace", "order-4"}, {"millrace", "order-5"},
		{"watermill", "order-6"}, {"watermill", "order-7"},
	}, all)
}

type recorder func(order string)

func (r recorder) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		r(string(msg.Payload))
	}
	return nil
}

func (recorder) Close() error { return nil }
