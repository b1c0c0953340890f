package main

// Why the figures are what they are, for docs/benchmarks.md.

var drainExplained = map[string]string{
	classic: `The broker is the limit. Watermill's publisher waits for each confirm before it sends the next message, and by
default opens and closes a channel for each: four round trips for a message, and nothing that the broker could write together. Tuned, it still
waits for each confirm. Millrace sends a batch and takes the confirms as they come.`,
	quorum: `As above; a quorum queue writes confirmed messages together and so gains more from many in flight. One node: there is no
replication in these figures.`,
	streams: `Redis answers an XADD in microseconds, so the forwarder itself is the limit: reading, deleting and encoding. Watermill waits for one
XADD at a time. "Database alone" reads and deletes the same rows without sending them.`,
}

const largeExplained = `Watermill's query looks at everything that waits for each batch, so that its rate falls as the backlog grows. Millrace
reads each lane from its bottom through an index.`

const slowExplained = `Every server a network away, as in production. Who waits for each message moves at most one in a round trip.`

const keysExplained = `Messages of one key go one after the other. To RabbitMQ a batch holds one message of a key, because the confirm of the
first has to be there before the second is sent; with few keys batches are small, and round trips count. To Redis a batch may hold several: the
script that adds them stops a key at its first failure.`

const latencyExplained = `From InTx having returned to the consumer having the message. Within the process that commits, the forwarder is told of
the commit; another process hears of it by NOTIFY, which is sent on a connection of its own and not for every commit. Watermill looks once a second by default, tuned every
10 ms, and sees nothing that is younger than the oldest open transaction of the whole server that writes.`

const producerExplained = `"row" is the business row alone: BEGIN, INSERT, COMMIT. A message more is an INSERT of some 1.2 KB, its index entries
and its log. On native pgx it travels in COMMIT's round trip; on database/sql and with Watermill it is a round trip of its own.
"limit: plain row" writes the same values by hand, also in COMMIT's round trip, into a table that has a primary key and nothing else: no unique id, no
index to read by, no checks.`

const consumeExplained = `A claim and a mark are two round trips for each message. Watermill's subscribers hand a message out when the last one
is acknowledged, so they wait for both each time; millrace's hand out as many as Concurrency says, and the waits overlap.`

const otherExplained = `SQLite has one writer at a time. MariaDB reads and deletes as PostgreSQL does, through database/sql.`

const idleExplained = `An idle forwarder looks for messages each second, renews its lease four times in 8 s, and looks for what is due and for
who else is there. Only the renewal writes.`

const backlogExplained = `What waits stays in the database: a forwarder holds at most Config.ReadAheadRows of it in memory.`

const poisonExplained = `One message that the broker refuses, sent first. Millrace counts its attempts and goes on with the rest; Watermill's
forwarder, given one message that it cannot unwrap, tries that one for ever.`

const confirmExplained = `A consumer with the recommended chain whose messages ask for a confirmation. In the background the message is acknowledged while
its confirmation is under way; it counts here when the broker has both. Waiting costs a round trip more. In the transaction the confirmation is a row of the outbox:
on native pgx it travels in COMMIT's round trip, on database/sql it is a round trip of its own. One handler writes one short row and the other does nothing, so the
shares are what confirming costs at most. With Redis 100 messages are in hand, with the database 20, as many as it has connections. Who forwards and applies
the confirmations is not running.`

// What the knobs change.

const batchRowsText = `Messages in one call of the publisher, and rows of one read. More share a round trip; fewer are in memory, and are sent twice after a crash.`

const batchesText = `Calls of the publisher at once: together with BatchRows it says how much waits for the broker's answers. Order is kept either way.`

const readAheadText = `Messages held in memory: read, in flight, or confirmed and not yet settled. The default is (Batches + 2) × BatchRows. Below Batches × BatchRows it is
what limits the flight.`

const replicasText = `More forwarders are for availability. Here they run on the same cores as the servers, in one process, each with a publisher and connections
of its own; they had their shares of the lanes before the messages came.`

const debounceText = `The pause is no setting: it is 5 ms, and this is why. The first note goes at once; what is committed in the pause after it shares the next one.
On the left how late a message is at a consumer of Redis when the forwarder is in another process, on the right what the notes cost who writes.`

const concurrencyText = `Messages in hand at a time, each remembered in Redis by middleware.Idempotent; the handler does nothing. Waits for round trips overlap,
and messages that are handled at the same time share them. A handler that waits for something of its own gains more. More are given out twice when the
process dies.`
