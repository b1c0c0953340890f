package sqlstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/storetest"
)

func TestOneMessageThatCannotBeReadStopsNoOther(t *testing.T) {
	t.Parallel()
	for name, db := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := db(t)
			s := newStore(t, db)
			storetest.TestUnreadable(t, func(testing.TB) store.Store { return s }, damageIn(t, db))
		})
	}
}

// damageIn writes a byte before the head of a message, and takes it away again.
func damageIn(t *testing.T, db millrace.DB) storetest.Damage {
	t.Helper()
	dialect, err := db.TxnPool().Dialect(t.Context())
	require.NoError(t, err)
	text := map[txn.Dialect][2]string{
		txn.Postgres: {`'\x78'::bytea || head`, `substring(head FROM 2)`},
		txn.MySQL:    {`CONCAT('x', head)`, `SUBSTRING(head, 2)`},
		txn.SQLite:   {`CAST('x' || head AS BLOB)`, `CAST(substr(head, 2) AS BLOB)`},
	}[dialect]
	where := `grp = ? AND message_id = ?`
	if dialect == txn.Postgres {
		where = `grp = $1 AND message_id = $2`
	}
	return func(t testing.TB, group, id string, mend bool) {
		t.Helper()
		change := text[0]
		if mend {
			change = text[1]
		}
		var changed int64
		for _, table := range []string{"millrace_delayed", "millrace_dead_letters"} {
			n, err := db.TxnPool().Exec(t.Context(), fmt.Sprintf(`UPDATE %s SET head = %s WHERE %s`, table, change, where), group, id)
			require.NoError(t, err)
			changed += n
		}
		require.Equal(t, int64(1), changed)
	}
}
