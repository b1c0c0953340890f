// Package forwarder carries committed messages from an outbox to a broker.
//
// A Forwarder holds lanes of the outbox under a lease, reads what waits in them, publishes it, and
// deletes what the broker has confirmed. Any number of replicas may run on one outbox: they share the
// lanes fairly, take over from each other when one dies, and join and leave without losing a message
// or turning the order of a key around.
//
// What holds, whatever dies and whenever:
//
//   - A message that was committed reaches the broker at least once; one that was rolled back never.
//   - Messages with the same key are first delivered in the order of their positions, which is the
//     order in which conflicting transactions committed. Messages without a key promise no order.
//   - A message is published a second time only if its first outcome was not known or its lease was
//     lost: at most what was in flight, for each process killed and each connection lost.
//   - A message that the broker refuses is tried MaxAttempts times, with back-off, and then parked.
//     A broker that cannot be reached costs no attempt.
//
// Each message carries millrace_place in its metadata: lane, epoch, position and attempt, as in "17.3.1042.1". Of two
// copies of one message, the one with the lower epoch was sent by an earlier holder of the lane. Copies of one holder may
// be alike: only refusals count as attempts.
//
// # Several destinations
//
// Config.Routes send topics to publishers of their own; what no route matches goes to the publisher given to
// New, and if that is nil, it is refused and parked. One that is dead or slow leaves the others as they
// were. The same process must work all destinations of an outbox: do not run forwarders with different
// routes on one outbox for longer than a roll-out takes.
//
// Topics and destinations can be paused (outbox.Box.Pause): what is in flight is finished, and the rest
// stays in the outbox. To be paused, the destination of the publisher given to New needs a name:
// Config.Destination.
//
// A replica that has not reached a destination for about four leases (30 s with the default), which another
// replica reaches, leaves its lanes to the others until it is back.
//
// A refusal counts as an attempt while other messages get through to the same destination. When everything is
// refused there, nothing counts and nothing is parked, until something gets through.
//
// # Caveats
//
// A publisher that does not return when its context ends cannot be stopped. The forwarder goes on
// without it, sends nothing more through it until the call has returned, and leaves its lanes to
// other replicas if there are any.
//
// The forwarder uses up to six connections of its database handle at a time, and one more for each route,
// seldom more than three. database/sql keeps two idle ones by default: SetMaxIdleConns(6) saves it from
// connecting again and again.
//
// Each renewal of a lease consumes a transaction id of the database; an empty poll consumes none.
package forwarder
