// Package middleware is the consumer's side: what stands between a broker that may deliver a message
// twice, late, or not at all while something is down, and a handler that wants to run once.
//
// Each constructor returns a message.HandlerMiddleware for Watermill's router, and an error that names
// everything wrong with the configuration. Recommended builds the chain in the right order.
//
//	chain, err := middleware.Recommended(middleware.Config{Dedup: store})
//	router.AddMiddleware(chain...)
//
// # How a delivery ends
//
// The middlewares of one delivery share a record of how it ended: done, deferred (stored, comes back
// to this handler), poisoned (stored among the dead) or failed. Only done is remembered as done. So in
// any order of the middlewares a message that was put aside runs again when it comes back, and an
// error that some other middleware swallowed does not become an acknowledgement: put such a middleware
// (Watermill's IgnoreErrors, for instance) innermost.
//
// # What becomes of a failure
//
// Retry calls the handler again within the delivery; DelayedRetry stores the message for its handler
// alone and lets the queue go on; PoisonQueue keeps what is given up. What an error means is said by the
// handler (Permanent, RetryAfter, NotYet, WithReason) or by the rules of Classify. See docs/retries.md.
//
// # Caveats
//
// A handler that is told to stop (its context ends) and does not listen goes on running beside the one
// that took over. Only a check of the Fence at the resource, or Transactional, stops that.
package middleware
