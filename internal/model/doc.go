// Package model has the test that drives the whole way of a message, there and back, through everything that can go
// wrong: the producer's transactions, the forwarder, the consumers and their middlewares, the confirmations and what
// is sent again, all as they run in production, between a database and a broker that are fakes, in the time of a
// testing/synctest bubble. In some runs confirmations are signed, the keys are changed meanwhile, and somebody without a
// key makes confirmations up.
//
// What goes wrong is drawn from a seed. A seed that fails is printed; it runs again alone, fifty times, with
//
//	MILLRACE_SEED=1234 go test -run TestWhateverGoesWrong ./internal/model
//
// The order in which goroutines run at the same moment, and the jitter of back-offs, do not come from the seed: nearly
// every failure comes again each time, a rare race in one of some runs.
package model
