package outbox

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// MySQL and MariaDB take most of the time of a read of many lanes and topics to plan a SELECT for each of them. While
// a backlog is worked off, one SELECT below a position does: the rows of the read before tell how far up enough of them
// will be found. If there are not, that was for nothing, and the read is made lane by lane.

// mysqlReach knows, of lists of topics, up to where a read would have been filled twice.
type mysqlReach struct {
	mu   sync.Mutex
	dist map[string]reached
}

// reached is the last position of a read that was filled, and how many positions there were to each of its rows.
type reached struct {
	last   int64
	sparse float64
}

const (
	fewParts  = 8    // of so few lanes and topics a read is cheap
	mostParts = 1024 // of so many ranges, MySQL might read the whole index
	// mostSparse bounds how many rows may be looked at in vain where they lie denser than before.
	mostSparse = 16
	mostReach  = 64 // lists of topics
)

// below is the position that bounds a read, if it is worth one.
func (r *mysqlReach) below(q Read) (pos int64, ok bool) {
	if q.parts() <= fewParts || q.parts() > mostParts {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.dist[reachKey(q)]
	return d.last + int64(2*d.sparse*float64(q.MaxRows)), ok
}

// learn remembers what a read has found.
func (r *mysqlReach) learn(q Read, rows []Row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.dist, reachKey(q))
	if len(rows) < 2 || len(rows) < q.MaxRows {
		return
	}
	d := reached{last: rows[len(rows)-1].Pos}
	d.sparse = float64(d.last-rows[0].Pos) / float64(len(rows)-1)
	if d.sparse > mostSparse {
		return
	}
	if r.dist == nil || len(r.dist) >= mostReach {
		r.dist = make(map[string]reached)
	}
	r.dist[reachKey(q)] = d
}

func reachKey(q Read) string { return strings.Join(q.Topics, "\x00") }

// belowText is a read of what lies below a position. It is the answer if it is full.
func (d *mysql) belowText(q Read, below int64) string {
	topics := make([]string, len(q.Topics))
	for i, topic := range q.Topics {
		topics[i] = hex(topic)
	}
	exclude := notIn(q.Exclude)
	if len(q.BusyKeys) > 0 {
		keys := make([]string, len(q.BusyKeys))
		for i, key := range q.BusyKeys {
			keys[i] = hex(key)
		}
		for some := range slices.Chunk(keys, mostIn) {
			exclude += ` AND order_key NOT IN (` + strings.Join(some, ",") + `)`
		}
	}
	return d.rowsText(q, fmt.Sprintf(`SELECT pos, size FROM millrace_outbox FORCE INDEX (millrace_outbox_ready)
		WHERE ready = 1 AND topic IN (%s) AND lane IN (%s) AND pos <= %d%s`, strings.Join(topics, ","), list(q.Lanes), below, exclude))
}

// full reports whether what was found below a position is all that was asked for.
func (v mysqlAnswer) full(q Read) bool {
	return v.candidates == q.MaxRows || len(v.rows) < v.candidates
}
