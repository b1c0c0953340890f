package outbox

import "context"

// Waker carries short notes between the processes of one outbox, so that a forwarder hears at once of
// what another process has committed. It is set as Config.Waker on both sides: a Box sends after each
// commit, and listens while somebody is subscribed. pgxtx.NewWaker is one for PostgreSQL, by LISTEN and
// NOTIFY; forwarder/rediswaker one for all databases.
//
// A Waker makes things faster and nothing else. Its notes may be lost, doubled and reordered: a message
// whose note was lost is found by the next poll. It never delays a commit, and who commits never gets
// its errors.
//
// Both methods may be called by several goroutines, and never inside of a transaction.
type Waker interface {
	// Send gives a note to all who listen. A note is printable ASCII of at most 64 bytes. However many
	// transactions commit, a Box sends one note after the other, with a pause of 5 ms.
	Send(ctx context.Context, note string) error
	// Listen calls ready once it hears, and then heard with each note that anybody sends, also this
	// process. It returns when ctx ends, or with the reason why it cannot go on; the Box then calls it
	// again after a while.
	Listen(ctx context.Context, ready func(), heard func(note string)) error
}
