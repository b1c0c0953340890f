// Package loop has the tests of the whole way there and back: outbox, forwarder, broker, consumer,
// confirmation, and what is sent again in between.
package loop
