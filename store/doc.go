// Package store keeps messages that a handler could not cope with: those that it is to get again later,
// and those that were given up.
//
// Both belong to one group, the name of the handler: what is stored for one handler concerns no other
// consumer of the topic. A message that is replayed goes from the dead letters to the messages that
// are due, in one step, and so comes back to that handler alone.
//
// [Memory] is for tests. SQL databases are in sqlstore, the default: what is stored there survives
// as what the database commits. Redis is in redisstore, with its limits. The rules that every Store
// keeps are in storetest.
//
// middleware.DelayedRetry and middleware.PoisonQueue fill a store, delayed.Subscriber hands out what
// is due; [Replay], [ReplayEdited] and [Discard] are for the operator.
package store
