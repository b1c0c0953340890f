// Package rabbitmq publishes to and subscribes from RabbitMQ, with the configuration, topology and
// marshaler types of watermill-amqp.
//
// The publisher answers "stored" only for what the broker has confirmed and could route. It sends
// a batch without waiting for each message, tells a refused message from a broker that cannot be
// reached, and finds the one message over which the broker closes a channel. The subscriber keeps
// several messages in hand at a time, those of one key in order, and lets handlers finish before it
// ends.
//
// # Caveats
//
// A message that no queue is bound for is refused, also if the consumers are only not deployed yet.
// Give the exchange an alternate exchange (Exchange.Arguments) where that shall not be.
//
// Order per key is kept within one subscription. Several consumers of one queue share its messages,
// and with them the keys.
//
// When a connection is lost the broker delivers again what was not acknowledged; handlers that were
// running go on. Handlers must be idempotent.
package rabbitmq
