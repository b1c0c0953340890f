package outbox_test

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/outbox"
)

func TestTheLaneOfAKeyNeverChanges(t *testing.T) {
	for key, lane := range map[string]int{
		"": 37, "a": 12, "foobar": 40, "order-1": 45, "order-2": 20, "customer:42": 63, "Ärger": 6,
		"0198c0de-0000-7000-8000-000000000001": 35,
	} {
		require.Equal(t, lane, outbox.Lane(key), key)
	}
	seen := map[int]int{}
	for i := range 6400 {
		seen[outbox.Lane(fmt.Sprint("order-", i))]++
	}
	for lane := range outbox.Lanes {
		require.Greater(t, seen[lane], 20, "lane %d of keys that count up", lane)
	}
}

func TestTheMigrationsRecordThemselvesForOtherTools(t *testing.T) {
	for _, b := range []backend{postgres, sqlite, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			o := connect(t, b, b.source(t), outbox.Config{})
			require.True(t, outbox.IsSetup(o.box.Check(t.Context())))
			folder := map[string]string{"pgx": "postgres", "sqlite": "sqlite", "mysql": "mysql"}[b.driver]
			for range 2 { // each statement may be run again
				text, err := fs.ReadFile(outbox.Migrations().Files, folder+"/0001_outbox.sql")
				require.NoError(t, err)
				for _, statement := range migrate.Split(string(text)) {
					o.exec(statement)
				}
			}
			require.NoError(t, o.box.Check(t.Context()))
			require.NoError(t, o.box.Migrate(t.Context()), "there is nothing left to do")
			require.Equal(t, int64(64), o.one(`SELECT count(*) FROM millrace_lanes`))
		})
	}
}

func TestTwoOutboxesLiveInOneDatabase(t *testing.T) {
	for _, b := range []backend{postgres, sqlite, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			o := open(t, b, outbox.Config{})
			cfg := outbox.Config{Prefix: "billing_"}
			second, err := outbox.New(o.db, cfg)
			require.NoError(t, err)
			require.True(t, outbox.IsSetup(second.Check(t.Context())))
			require.NoError(t, millrace.Migrate(t.Context(), o.db, outbox.Migrations(cfg)))
			require.NoError(t, second.Check(t.Context()))
			require.NoError(t, o.inTx(t.Context(), func(ctx context.Context) error {
				require.NoError(t, o.box.Publish(ctx, "orders", msg("1", "")))
				return second.Publish(ctx, "bills", msg("1", ""))
			}))
			require.Equal(t, int64(1), o.one(`SELECT count(*) FROM billing_outbox WHERE topic = 'bills'`))
			topics, err := second.Store().Topics(t.Context())
			require.NoError(t, err)
			require.Equal(t, []string{"bills"}, topics.Ready)
			require.Equal(t, int64(2), o.one(`SELECT count(*) FROM millrace_schema`))
		})
	}
}

func TestRowsThatNobodyWouldReadFailInTheBusinessTransaction(t *testing.T) {
	for _, b := range []backend{postgres, sqlite, mariadb} {
		t.Run(b.name, func(t *testing.T) {
			o := open(t, b, outbox.Config{})
			row := map[string]string{
				"id": "'1'", "lane": "0", "topic": "'orders'", "order_key": "''", "ready": "1 = 1", "due_at": "NULL",
				"held": "NULL", "metadata": "'{}'", "payload": "'p'", "created_at": o.in(0),
			}
			insert := func(with map[string]string) error {
				var names, values []string
				for name, value := range row {
					if other, ok := with[name]; ok {
						value = other
					}
					names, values = append(names, name), append(values, value)
				}
				_, err := o.raw.ExecContext(t.Context(), `INSERT INTO millrace_outbox (`+strings.Join(names, ", ")+`) VALUES (`+strings.Join(values, ", ")+`)`)
				return err
			}
			bad := map[string]map[string]string{
				"lane 64":                {"lane": "64"},
				"lane -1":                {"lane": "-1"},
				"no lane":                {"lane": "NULL"},
				"no topic":               {"topic": "NULL"},
				"empty topic":            {"topic": "''"},
				"no id":                  {"id": "NULL"},
				"empty id":               {"id": "''"},
				"no payload":             {"payload": "NULL"},
				"not ready for no cause": {"ready": "1 = 0"},
				"ready and due":          {"due_at": o.in(0)},
				"ready and held":         {"held": "'broker'"},
				"held and due":           {"ready": "1 = 0", "held": "'broker'", "due_at": o.in(0)},
			}
			if b.driver == "pgx" {
				bad["due at infinity"] = map[string]string{"ready": "false", "due_at": "'infinity'"}
			}
			for name, with := range bad {
				require.Error(t, insert(with), name)
			}
			require.NoError(t, insert(nil))
			require.Equal(t, 1, o.count())
		})
	}
}
