package outbox

import (
	"context"
	"database/sql"
)

// PostgresStatements are the statements about the outbox table with arguments to explain them by.
func PostgresStatements() map[string]string {
	const lane, grants, row = `'3'`, `'{1,2,3}', '{1,1,1}'`, `'7', 'x'`
	call := map[string][2]string{
		"read":    {pgRead, `'{0,1,2,3,4,5,6,7}', '{live}', '{1,2,3}', '{a}', 32, 500, 1000000, 0`},
		"lowest":  {pgLowestReady, `0, 1000`},
		"few":     {pgFewTopics, `20000, 1000`},
		"look":    {pgLook, `'{1,2,3}'`},
		"promote": {pgPromote, grants + `, 1000`},
		"settle":  {pgSettle, grants + `, '{1,2,3}', '{a,b,c}'`},
		"attempt": {pgAttempt, lane + `, 1, ` + row + `, 2`},
		"refuse":  {pgRefuse, lane + `, 1, ` + row + `, 1, 1000, 'd', 1`},
		"hold":    {pgHold, lane + `, 1, 'd', '{1,2}', '{a,b}'`},
		"lift":    {pgLift, lane + `, 1, 'd', 'k'`},
		"park":    {pgPark, lane + `, 1, ` + row + `, 'd', 'r', 'e', 1`},
		"topics":  {(&postgres{}).translate(topicsQuery), ``},
	}
	statements := make(map[string]string, len(call))
	for name, c := range call {
		statements[name] = c[0] + "\x00" + c[1]
	}
	return statements
}

// TableSize is for its test.
type TableSize = tableSize

// Tag is for the test of TableSize.
func (s *TableSize) Tag(pages int64) string {
	return s.tag(func() (int64, error) { return pages, nil })
}

// SQLitePlan is how SQLite goes about a read.
func SQLitePlan(ctx context.Context, db *sql.DB) (plan string) {
	rows, err := db.QueryContext(ctx, `EXPLAIN QUERY PLAN `+(&sqlite{}).translate(sqliteRead),
		"[1,2]", `["a"]`, "[]", "[]", 10, 100, 1000)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	for rows.Next() {
		var a, b, c int
		var detail string
		if err := rows.Scan(&a, &b, &c, &detail); err != nil {
			return err.Error()
		}
		plan += detail + "\n"
	}
	return plan
}
