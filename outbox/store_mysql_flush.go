package outbox

import "context"

// mysqlEarly is true where a commit is seen by others before it is on disk. InnoDB takes a transaction
// off the list of open ones, and flushes its log afterwards; with a binary log that each commit waits for,
// it has been prepared on disk before.
const mysqlEarly = `@@log_bin = 0 OR @@sync_binlog <> 1`

// flush returns when the commits that brought these rows are on disk. Else a row could be published,
// and its transaction be gone when the server was killed. There is no statement for it: a commit flushes
// the log as far as its own place in it, and what was seen before stands in front of that. Each lane has
// a row to write, so that replicas do not wait for one another.
func (d *mysql) flush(ctx context.Context, rows []Row) error {
	if len(rows) == 0 {
		return nil
	}
	lane := rows[0].Lane
	for _, r := range rows[1:] {
		lane = min(lane, r.Lane)
	}
	_, err := d.pool.Exec(ctx, d.text(`INSERT INTO millrace_flush (lane, n) VALUES ($1, 1) ON DUPLICATE KEY UPDATE n = n + 1`), lane)
	return err
}
