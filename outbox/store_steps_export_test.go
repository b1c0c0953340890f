package outbox

import (
	"database/sql"
	"testing"
)

// SQLiteWaitingPlan is how SQLite looks for what has become due or free.
func SQLiteWaitingPlan(t testing.TB, db *sql.DB) (plan string) {
	rows, err := db.QueryContext(t.Context(), `EXPLAIN QUERY PLAN `+sqliteText(sqliteWaiting([]int{1, 2}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var a, b, c int
		var detail string
		if err := rows.Scan(&a, &b, &c, &detail); err != nil {
			t.Fatal(err)
		}
		plan += detail + "\n"
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan
}
