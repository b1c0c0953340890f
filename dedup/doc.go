// Package dedup remembers which messages have been handled, so that a second delivery of a message has
// no second effect.
//
// There are two ways to remember, and they promise different things.
//
// A [Store] (Memory here, Redis in redisdedup) keeps a record beside the handler's effect. It lets one
// delivery of a message run at a time and drops the copies of a message that is done. A process that
// dies after the effect and before the record leaves a duplicate; so does a store that forgets. It fits
// handlers whose effect is a call to somebody else. middleware.Idempotent drives it.
//
// An [Inbox] keeps the record in the same database transaction as the effect: both or neither. It
// fits handlers that write a database, and is the better choice for them.
// middleware.Transactional drives it.
//
// Both remember for a limited time. A copy that arrives later is a new message to them: keep records
// longer than the longest time in which a broker, an operator or a producer can send one again.
package dedup
