package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestReconciliationFindsWhatIsWrong: a count that cannot fail proves nothing.
func TestReconciliationFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change string   // of the bills: there are three orders, a, b and c, and a bill for each
		told   snapshot // what the processes reported
		want   string   // the rows that are marked
	}{
		{name: "nothing is wrong"},
		{name: "an order was not billed", change: `DELETE FROM bills WHERE order_id = 'b'`, want: "orders billed 2; lost 1"},
		{name: "an order was billed twice", change: `INSERT INTO bills VALUES ('a', 0, 'x')`, want: "doubled 1"},
		{name: "an order that was rolled back was billed", change: `INSERT INTO bills VALUES ('z', 0, 'x')`, want: "ghosts 1"},
		{name: "a bill has another amount", change: `UPDATE bills SET amount = 7 WHERE order_id = 'a'`, want: "orders billed 3"},
		{name: "a commit was reported that did not happen", told: snapshot{Committed: 4}, want: "orders committed 3"},
		{name: "an order overtook another", told: snapshot{Committed: 3, Disorder: 1}, want: "out of order 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := config{DB: t.TempDir()}
			shop, err := openDatabase(cfg, "shop")
			require.NoError(t, err)
			defer shop.Close()
			billing, err := openDatabase(cfg, "billing")
			require.NoError(t, err)
			defer billing.Close()
			_, err = shop.Exec(tables + `INSERT INTO orders VALUES ('a', 'x', 1, 100), ('b', 'x', 2, 100), ('c', 'x', 3, 100)`)
			require.NoError(t, err)
			_, err = billing.Exec(billTable + `; INSERT INTO bills VALUES ('a', 100, 'x'), ('b', 100, 'x'), ('c', 100, 'x'); ` + c.change)
			require.NoError(t, err)

			if c.told == (snapshot{}) {
				c.told.Committed = 3
			}
			r, err := reconcile(t.Context(), shop, billing, c.told)
			require.NoError(t, err)
			var table strings.Builder
			r.print(&table, painter{})

			require.Equal(t, c.want, strings.Join(marked(table.String(), "✗"), "; "))
			require.Equal(t, c.want == "", r.clean())
			require.Equal(t, c.want == "", strings.Contains(table.String(), "was billed exactly once"))
		})
	}
}

// marked returns the rows of a table that carry a mark, as "label number".
func marked(table, mark string) (rows []string) {
	for line := range strings.Lines(table) {
		if row, ok := strings.CutPrefix(strings.TrimSpace(line), mark); ok {
			label, _, _ := strings.Cut(strings.TrimSpace(row), "   ")
			number := strings.Fields(strings.TrimPrefix(strings.TrimSpace(row), label))[0]
			rows = append(rows, label+" "+number)
		}
	}
	return rows
}
