package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// PostgresStatements are the statements about the outbox table with arguments to explain them by.
func PostgresStatements() map[string]string {
	const lane, grants, row = `'3'`, `'{1,2,3}', '{1,1,1}'`, `'7', 'x'`
	call := map[string][2]string{
		"read":    {readText(32), `'{0,1,2,3,4,5,6,7}', '{live}', '{1,2,3}', '{a}', 500, 1000000, '{0,0,0,0,0,0,0,0}'`},
		"along":   {alongText(640), `0, 500, '{0,1,2,3,4,5,6,7}', '{live}', '{1,2,3}', '{a}', 1000000`},
		"next":    {nextText(Read{MaxRows: 500}, 500), `0, 500, '{0,1,2,3,4,5,6,7}', '{live}', '{1,2,3}', '{a}'`},
		"lowest":  {pgLowestReady, `0, 1000`},
		"few":     {pgFewTopics, `20000, 1000`},
		"look":    {pgLook, `'{1,2,3}'`},
		"promote": {pgPromote, grants + `, 1000`},
		"settle":  {pgSettle, grants + `, '{1,2,3}', '{a,b,c}', 3`},
		"probe":   {deleteText(pgProbe), grants + `, '{1,2,3}', '{a,b,c}', 3`},
		"walk":    {deleteText(pgWalk), grants + `, '{1,2,3}', '{a,b,c}', 3, 1, 3`},
		"gone":    {pgGone, `'{1,2,3}', '{a,b,c}'`},
		"mark":    {pgMark, grants + `, '{1,2,3}', '{a,b,c}'`},
		"attempt": {pgAttempt, lane + `, 1, ` + row + `, 2`},
		"refuse":  {pgRefuse, lane + `, 1, ` + row + `, 1, 1000, 'd', 1, 'r', 'e'`},
		"hold":    {pgHold, lane + `, 1, 'd', '{1,2}', '{a,b}'`},
		"lift":    {pgLift, lane + `, 1, 'd', 'k'`},
		"park":    {pgPark, lane + `, 1, ` + row + `, 'd', 'r', 'e', 1`},
		"topics":  {(&postgres{}).translate(topicsQuery + pgAndLast), ``},
	}
	statements := make(map[string]string, len(call))
	for name, c := range call {
		statements[name] = c[0] + "\x00" + c[1]
	}
	return statements
}

// CreatedAt is how PostgreSQL answers the time of a row.
const CreatedAt = pgCreatedAt

// Raise does a step of the proof of the bound of reads now, and returns the bound.
func Raise(ctx context.Context, s Store) int64 {
	p := s.(*sqlStore).found.(*postgres)
	p.bound.step.Lock()
	p.bound.stepped = time.Unix(1, 0)
	p.bound.step.Unlock()
	p.raise(ctx)
	at, _ := p.bound.get()
	return at
}

// Bound is from where reads begin.
func Bound(s Store) int64 {
	at, _ := s.(*sqlStore).found.(*postgres).bound.get()
	return at
}

// Walks reports whether a settle of the rows walks over what lies between them.
func Walks(rows []Ref) bool { _, _, walk := stretchOf(rows); return walk }

// Lower takes the bound to the bottom until done is called.
func Lower(s Store) (done func(error)) { return s.(*sqlStore).found.(*postgres).bound.lower() }

// PreparedAge sets how old a prepared transaction is that Check warns of.
func (b *Box) PreparedAge(age time.Duration) { b.store.preparedAge = age }

// Distrust makes the next step prove the bound from the bottom.
func Distrust(s Store) {
	p := s.(*sqlStore).found.(*postgres)
	p.bound.step.Lock()
	defer p.bound.step.Unlock()
	p.bound.full = time.Time{}
}

// Later makes the store believe that so much time has passed.
func Later(s Store, d time.Duration) {
	p := s.(*sqlStore).found.(*postgres)
	p.bound.step.Lock()
	p.bound.stepped, p.bound.full = p.bound.stepped.Add(-d), p.bound.full.Add(-d)
	p.bound.step.Unlock()
	p.size.mu.Lock()
	p.size.asked = p.size.asked.Add(-d)
	p.size.mu.Unlock()
}

// TableSize is for its test.
type TableSize = tableSize

// Tag is for the test of TableSize.
func (s *TableSize) Tag(pages int64) string {
	return s.tag(func() (int64, error) { return pages, nil })
}

// SQLitePlan is how SQLite goes about a read.
func SQLitePlan(ctx context.Context, db *sql.DB) (plan string) {
	rows, err := db.QueryContext(ctx, `EXPLAIN QUERY PLAN `+(&sqlite{}).translate(sqliteRead),
		"[1,2]", `["a"]`, "[]", "[]", 10, 100, 1000)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	for rows.Next() {
		var a, b, c int
		var detail string
		if err := rows.Scan(&a, &b, &c, &detail); err != nil {
			return err.Error()
		}
		plan += detail + "\n"
	}
	return plan
}

// ReadStatement is a read of all lanes above a bound.
func ReadStatement(topic string, bound int64) (text, args string) {
	lanes := make([]int, Lanes)
	for i := range lanes {
		lanes[i] = i
	}
	above := make([]int64, Lanes)
	for i := range above {
		above[i] = bound
	}
	return readText(32), fmt.Sprintf(`('%s', '{%s}', '{}', '{}', 500, 1000000, '%s')`, intArray(lanes), topic, intArray(above))
}

// TopicsStatement is what looks for topics with a bound.
func TopicsStatement(bound int64) (text, args string) {
	if bound > 0 {
		return pgFewTopics, fmt.Sprintf(`(%d, %d)`, bound, fewRows)
	}
	return (&postgres{}).translate(topicsQuery + pgAndLast), ``
}

// Public is what a user sees of Stats.
func (s Stats) Public() Stats {
	s.missing = nil
	return s
}

// SetStatsLimit replaces StatsLimit.
func SetStatsLimit(b *Box, n int) { b.statsLimit = n }

// Reach is up to where reads have taken all of a lane and topic.
func Reach(s Store, lane int, topic string) int64 {
	b := &s.(*sqlStore).found.(*postgres).bound
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken.part(readPart{lane, topic}).upto
}

// ReadsGrowOld makes the store believe that reads have not begun at the bottom for long.
func ReadsGrowOld(s Store) {
	b := &s.(*sqlStore).found.(*postgres).bound
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken.fresh = b.taken.fresh.Add(-boundTrust)
}

// ReadEachWay reads the next rows of the table as they are, along the primary key with counting, each if that brings enough, and lane
// by lane, as much of each lane as the whole may have: with its fair part, a lane that has more than the others leaves its highest
// rows to the next read.
func ReadEachWay(ctx context.Context, s Store, q Read) (next, along, lanes []Row, err error) {
	p := s.(*sqlStore).found.(*postgres)
	from := p.bound.begin(q)
	n := q.MaxRows + len(from.exclude)
	w, err := p.walk(ctx, q, nextText(q, n), walkArgs(q, from, n))
	if err != nil {
		return nil, nil, nil, err
	}
	if w.enough(q, n) {
		next = w.rows
	}
	p.along.rest.Store(0)
	p.next.topics(q.Topics).failed()
	if along, _, err = p.readAlong(ctx, q, p.bound.begin(q)); err != nil {
		return nil, nil, nil, err
	}
	p.along.failed()
	lanes, _, err = p.readOnce(ctx, q, p.bound.begin(q), roundUp(q.MaxRows))
	return next, along, lanes, err
}

// TryNext has the next read of these topics take the cheapest way, whatever is known of the size of their rows.
func TryNext(s Store, topics []string) {
	p := s.(*sqlStore).found.(*postgres)
	p.along.rest.Store(0)
	next := p.next.topics(topics)
	next.rest.Store(0)
	next.largest.Store(1)
}

// Counted is how many walks along the table yet count what they bring, where it would not be for the size of the rows.
func Counted(s Store, topics ...string) int {
	return max(0, int(s.(*sqlStore).found.(*postgres).next.topics(topics).rest.Load()))
}

// Resting is how many reads yet are made lane by lane, and how many settles do not try the cheaper way first.
func Resting(s Store) (along, plain int) {
	p := s.(*sqlStore).found.(*postgres)
	return int(p.along.rest.Load()), int(p.plain.rest.Load())
}
