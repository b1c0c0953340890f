package outbox_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
)

func TestSQLiteLooksByItsIndexes(t *testing.T) {
	b := open(t, sqlite, outbox.Config{})
	plan := outbox.SQLiteWaitingPlan(t, b.raw)
	for _, want := range []string{
		"p USING COVERING INDEX millrace_outbox_held (lane=? AND held>?)",
		"p USING COVERING INDEX millrace_outbox_held (lane=? AND held=? AND order_key>?)",
		"o USING COVERING INDEX millrace_outbox_due (lane=?", "s USING COVERING INDEX millrace_sent_due (lane=?",
	} {
		require.Contains(t, plan, want, plan)
	}
	for _, table := range []string{"o", "p", "s"} {
		require.NotContains(t, strings.Split(plan, "\n"), "SCAN "+table)
	}
	require.NotContains(t, plan, "TEMP B-TREE")
}
