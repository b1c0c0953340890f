// Package millrace runs database transactions with hooks: functions that run when a transaction is
// about to commit, has committed, has rolled back, or has ended in any way.
//
//	db := millrace.SQL(sqlDB) // or pgxtx.Pool(pool)
//	err := millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
//		if _, err := tx.ExecContext(ctx, `UPDATE stock SET left = left - 1 WHERE id = $1`, id); err != nil {
//			return err
//		}
//		return millrace.AfterCommit(ctx, func(ctx context.Context) error { return cache.Forget(ctx, id) })
//	})
//
// The transaction travels in the context, so that code far below can join it with InTx, register hooks,
// and publish to an outbox (package outbox), which is written by the same COMMIT.
//
// # What is promised
//
// InTx returns nil if, and only if, the database has confirmed the commit. Hooks run when the outcome
// is certain, after the connection went back to its pool, each kept apart from the others; none of them
// changes what InTx returns. When the answer to COMMIT is lost, InTx says so (UnknownOutcomeError)
// instead of guessing, and only AfterCompletion hooks run.
//
// # Caveats
//
// Hooks die with the process. What must happen after a commit belongs in the outbox; hooks are for what
// may be missed: a cache to forget, a metric, a wake-up.
//
// Use the context and the handle that fn gets, not those around it. One goroutine at a time: a statement
// begun while another runs is refused. Goroutines that outlive fn find their context cancelled and the
// handle closed.
//
// A wrapper cannot see what happens inside of *sql.Rows, *sql.Row and *sql.Stmt. On PostgreSQL that is
// harmless. On MySQL and MariaDB a deadlock that shows only there ends the transaction on the server,
// and further statements commit one by one; InTx notices before it writes buffered messages and before
// COMMIT, and reports a rollback, but what was written directly in between stays.
//
// On SQLite a process has one writer at a time per file: a write on the *sql.DB itself, inside of fn,
// waits for the transaction that waits for it. Two files beside the database, "-gate" and "-gate-next",
// let the writers of all processes in, first come first served.
package millrace
