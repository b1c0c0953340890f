// Package outbox keeps messages in the database of the business data, so that they commit or roll
// back together with it. A forwarder takes them to the broker afterwards.
//
//	db := millrace.SQL(sqlDB)
//	box, err := outbox.New(db, outbox.Config{})
//
//	err = millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
//		if _, err := tx.ExecContext(ctx, `INSERT INTO orders ...`); err != nil {
//			return err
//		}
//		return box.Publish(ctx, "orders.placed", msg)
//	})
//
// A row of the table is work to be done: it is deleted when the broker has the message, and what must
// be remembered moves to a table of its own.
//
// # Order
//
// Messages of one key (WithKey, Config.Key) are forwarded in the order in which the transactions that
// wrote them committed, provided that these transactions conflict: that they lock a common row, the
// business data itself, before they commit. Messages without a key have no order.
//
// Publish buffers, and the rows are inserted just before COMMIT, after all locks of the transaction
// have been taken. What is inserted earlier (Flush, an open savepoint, a raw transaction) is in order
// only with respect to what was locked before.
//
// # Caveats
//
// An id is unique among the messages that wait. Once one has been forwarded, its id is accepted again.
//
// On MySQL and MariaDB the database ends a transaction by itself when it is the victim of a deadlock.
package outbox
