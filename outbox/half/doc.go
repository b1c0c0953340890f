// Package half gives any broker what RocketMQ calls transactional messages: a message is stored where
// nobody sees it, a local transaction runs somewhere else, and then the message is let go or dropped. If
// the process dies in between, the message is checked back: the business is asked what became of the
// transaction.
//
// It is for business data that does not live in the outbox's database. Where it does, publish to the
// outbox inside the transaction instead: that is simpler in every way.
//
// There are two ways to check back. With a witness, a row that the local transaction writes into a SQL
// database of its own, nobody writes a checker: the row is there if and only if the transaction
// committed, and a tombstone in its place keeps one that is still open from ever committing. Without
// one, a Checker answers for the business; it promises that what it calls rolled back can never commit.
package half
