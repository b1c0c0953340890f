// Package redisstreams publishes to Redis Streams and reads from them, as Watermill publisher and
// subscriber.
//
// A topic is a stream. Entries have the form of watermill-redisstream, so that its publishers and
// subscribers may stand at the other end; its marshaler interfaces are used unchanged.
//
// # Publishing
//
// [Publisher] adds up to 500 messages of a stream in one round trip. Within a key (metadata millrace_key) it adds
// in order and stops at the first failure, so several messages of a key may be in one batch: they go through a
// script that sees to it. A message that is the only one of its key in its batch, or has no key, is a plain XADD,
// which costs Redis less. Over different keys a batch has no order. Nothing is trimmed by publishing: a length limit
// on a stream drops what nobody has read.
//
// A message may be there twice. One whose outcome is not known (the reply was lost) is reported as failed, to be sent
// again; and go-redis repeats a round trip by itself if the connection broke, or if the server said that it is not
// ready (LOADING, READONLY, NOREPLICAS, CLUSTERDOWN). First deliveries of a key are always in order.
//
// # Reading
//
// [Subscriber] reads as a member of a consumer group, with up to Config.Concurrency messages in the
// hands of handlers at a time. Messages of one key are handed out one after the other, in the order of the
// stream, also when one of them fails and comes again; messages without a key are handed out
// in the order of the stream and are not waited for. Order of a key is kept within one subscription: two
// members of a group share its messages, whatever their key, and what was taken over from a dead one
// comes after what was read meanwhile.
//
// An entry stays pending in Redis until the handler acknowledged it. While this process lives, it keeps
// the entries it holds (a heartbeat resets their idle time), however slow the handler is; when it dies,
// another member takes them over after Config.MaxIdle. On shutdown what was not handled is given
// up at once.
//
// An entry that is not a message is delivered all the same, so that it can be set aside: see
// [Subscriber] for its form.
//
// [Trimmer] removes what every group has acknowledged, and nothing else.
//
// # Caveats
//
// Delivery is at least once. What Redis forgets (a failover to a replica that lagged, a crash without
// appendonly, an eviction policy) is gone: Check warns of each.
package redisstreams
