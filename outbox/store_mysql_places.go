package outbox

import (
	"slices"
	"sync"
)

// mysqlPlaces knows the lanes of positions that were read lately: of what is in flight, as a rule.
type mysqlPlaces struct {
	mu         sync.Mutex
	young, old map[int64]int // lanes
}

// mostPlaces is about how many are remembered, twice. Of others the lane is not known, which costs time alone.
const mostPlaces = 50_000

func (p *mysqlPlaces) add(rows []Row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.young == nil || len(p.young) > mostPlaces {
		p.young, p.old = make(map[int64]int), p.young
	}
	for _, r := range rows {
		p.young[r.Pos] = r.Lane
	}
}

// exclude returns, for each of the lanes, the condition that leaves positions out.
func (p *mysqlPlaces) exclude(lanes []int, positions []int64) map[int]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	anywhere := []int64{}
	in := make(map[int][]int64)
	for _, pos := range positions {
		lane, known := p.young[pos]
		if !known {
			lane, known = p.old[pos]
		}
		if known {
			in[lane] = append(in[lane], pos)
		} else {
			anywhere = append(anywhere, pos)
		}
	}
	conditions := make(map[int]string, len(lanes))
	for _, lane := range lanes {
		conditions[lane] = notIn(append(in[lane], anywhere...))
	}
	return conditions
}

// mostIn bounds a list: MariaDB makes a table of each one of 1000 (in_predicate_conversion_threshold).
const mostIn = 500

// notIn is the condition that leaves positions out. Of the column alone, rows would be looked for between every two of
// these.
func notIn(positions []int64) (condition string) {
	for some := range slices.Chunk(positions, mostIn) {
		condition += ` AND pos + 0 NOT IN (` + list(some) + `)`
	}
	return condition
}
