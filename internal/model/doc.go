// Package model has the test that drives the whole way of a message, there and back, through everything that can go
// wrong: the producer's transactions, the forwarder, the consumers and their middlewares, the confirmations and what
// is sent again, all as they run in production, between a database and a broker that are fakes, in the time of a
// testing/synctest bubble. In some runs confirmations are signed, the keys are changed meanwhile, and somebody without a
// key makes confirmations up.
//
// Half messages go the same way: outbox/half as it runs in production, with a witness in another database, with a checker,
// and over HTTP. Its statements are read and evaluated, so that a condition that is missing there is missing here. Their
// producers die, stand still, come at the last moment or long after it, and try again before they have heard; COMMITs
// arrive when nobody waits for them; checkers are away, slow and talk nonsense. The world knows what the business has
// really done, and looks at each change of state in the moment when it commits.
//
// What goes wrong is drawn from a seed. A seed that fails is printed; it runs again alone, fifty times, with
//
//	MILLRACE_SEED=1234 go test -run TestWhateverGoesWrong ./internal/model
//
// The order in which goroutines run at the same moment, and the jitter of back-offs, do not come from the seed: nearly
// every failure comes again each time, a rare race in one of some runs.
package model
