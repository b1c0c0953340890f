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
