package outbox

import (
	"context"
	"fmt"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// mysql is the store on MySQL 8 and MariaDB 10.6.
//
// Its transactions are READ COMMITTED, name rows by primary key and wait at most a second for a lock:
// at REPEATABLE READ the gaps beside a named row would keep the business from inserting. While one is
// open the server ends it after a few seconds of silence, so that a process that was paused in it does
// not keep its lanes. The settings are made by the statement that begins, and put back by the one that commits (turning
// autocommit on does): between two statements, the process could be paused without that limit.
type mysql struct {
	steps
	seen   mysqlTopics
	places mysqlPlaces
	reach  mysqlReach
}

// mysqlRows are rows by position. Asked for by pos IN (...), a table of few rows is read as a whole.
const (
	mysqlRows     = `JSON_TABLE('[%s]', '$[*]' COLUMNS (pos BIGINT PATH '$')) k STRAIGHT_JOIN millrace_outbox o FORCE INDEX (PRIMARY) ON o.pos = k.pos`
	mysqlRowsLast = `JSON_TABLE('[%[3]s]', '$[*]' COLUMNS (pos BIGINT PATH '$')) k STRAIGHT_JOIN millrace_outbox o FORCE INDEX (PRIMARY) ON o.pos = k.pos`
	mysqlNames    = ` STRAIGHT_JOIN millrace_schedules s FORCE INDEX (millrace_schedules_id) ON s.id = o.id`
)

// mysqlLevel is the isolation level, which has another name on MySQL 8 than on MariaDB: each runs what the other takes
// for a comment.
const mysqlLevel = `/*M!100000 @@SESSION.tx_isolation *//*!80000 @@SESSION.transaction_isolation */`

func newMySQL(s *sqlStore) *mysql {
	return &mysql{steps: steps{
		sqlStore: s,
		waiting:  mysqlWaiting,
		share:    " ORDER BY lane LOCK IN SHARE MODE",
		alone:    " FOR UPDATE",
		skip:     " FOR UPDATE SKIP LOCKED",
		both:     "(%s) UNION ALL (%s)",
		enter: "SET @millrace_lock = @@innodb_lock_wait_timeout, @millrace_wait = @@wait_timeout, @millrace_level = " + mysqlLevel + ", " +
			"SESSION innodb_lock_wait_timeout = 1, SESSION wait_timeout = 5, " + mysqlLevel + " = 'READ-COMMITTED', SESSION autocommit = 0",
		byPosition: byPosition{
			pick:   `SELECT %s FROM ` + mysqlRows,
			change: `UPDATE ` + mysqlRowsLast + ` SET %[1]s WHERE %[2]s`,
			erase:  `DELETE o FROM ` + mysqlRows,
			names:  `SELECT s.id FROM ` + mysqlRows + mysqlNames,
			take:   `INSERT IGNORE INTO millrace_sending (id, name) SELECT s.id, s.name FROM ` + mysqlRows + mysqlNames,
			unname: `DELETE s FROM ` + mysqlRows + mysqlNames,
			forget: `DELETE m FROM ` + mysqlRows + ` STRAIGHT_JOIN millrace_sending m FORCE INDEX (PRIMARY) ON m.id = o.id`,
		},
		exit: "SET SESSION innodb_lock_wait_timeout = @millrace_lock, SESSION wait_timeout = @millrace_wait, " +
			mysqlLevel + " = @millrace_level, SESSION autocommit = 1",
	}}
}

func (d *mysql) translate(text string) string { return mysqlText(text) }

func mysqlText(text string) string {
	text = byIndex.ReplaceAllStringFunc(text, func(s string) string {
		m := byIndex.FindStringSubmatch(s)
		return map[string]string{"from": "FROM ", "update": "UPDATE ", "delete": "DELETE " + m[2] + " FROM "}[m[1]] +
			m[2] + " FORCE INDEX (" + m[3] + ")"
	})
	text = beforeParam.ReplaceAllString(text, `(UTC_TIMESTAMP(6) - INTERVAL $1 MICROSECOND)`)
	text = ageOf.ReplaceAllString(text, `TIMESTAMPDIFF(MICROSECOND, $1, UTC_TIMESTAMP(6))`)
	text = usOf.ReplaceAllString(text, `TIMESTAMPDIFF(MICROSECOND, '1970-01-01', $1)`)
	text = atOf.ReplaceAllString(text, `(CAST('1970-01-01' AS DATETIME(6)) + INTERVAL $1 MICROSECOND)`)
	text = afterParam.ReplaceAllString(text, `UTC_TIMESTAMP(6) + INTERVAL $1 MICROSECOND`)
	text = strings.NewReplacer("{now}", "UTC_TIMESTAMP(6)", "{ready}", "ready = 1", "{unready}", "ready = 0",
		"{until}", "TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), min(due_at))").Replace(text)
	return param.ReplaceAllString(text, `?`)
}

const mysqlColumns = `o.pos, o.id, o.lane, o.topic, o.order_key, o.attempts, o.size, o.metadata, o.payload,
	TIMESTAMPDIFF(MICROSECOND, '1970-01-01', o.created_at), o.schedule IS NOT NULL`

// read implements dialect. There is no lateral join on MariaDB: it is one SELECT for each lane and
// topic, in one statement and so one snapshot.
func (d *mysql) read(ctx context.Context, q Read) ([]Row, error) {
	v, err := d.lowest(ctx, q)
	d.reach.learn(q, v.rows)
	if err == nil && v.early {
		err = d.flush(ctx, v.rows)
	}
	if err != nil {
		return nil, err
	}
	return v.rows, nil
}

func (d *mysql) lowest(ctx context.Context, q Read) (v mysqlAnswer, err error) {
	if below, ok := d.reach.below(q); ok {
		if v, err = d.readOnce(ctx, d.belowText(q, below)); err != nil || v.full(q) {
			return v, err
		}
	}
	for perPart := share(q, shareOfFew); ; perPart = q.MaxRows {
		v, err = d.readOnce(ctx, d.readText(q, perPart))
		if err != nil || !short(q, v.rows, v.candidates, perPart) {
			return v, err
		}
	}
}

// mysqlAnswer is what one statement read.
type mysqlAnswer struct {
	rows       []Row
	candidates int
	early      bool // see mysqlEarly
}

func (d *mysql) readOnce(ctx context.Context, text string) (v mysqlAnswer, err error) {
	in := newRowReader(&v.candidates, &v.early)
	err = d.pool.Query(ctx, text, nil, func(row txn.Scanner) error {
		r, err := in.read(row)
		v.rows = append(v.rows, r)
		return err
	})
	d.places.add(v.rows)
	return v, err
}

// readText is without parameters: of many topics they would be more than a statement takes. What is to be left out
// stands in the part of its lane alone: in each of them, it would make megabytes.
func (d *mysql) readText(q Read, perPart int) string {
	exclude := d.places.exclude(q.Lanes, q.Exclude)
	for _, key := range q.BusyKeys {
		exclude[Lane(key)] += ` AND order_key <> ` + hex(key)
	}
	parts := make([]string, 0, len(q.Topics)*len(q.Lanes))
	for _, topic := range q.Topics {
		for _, lane := range q.Lanes {
			parts = append(parts, fmt.Sprintf(`(SELECT pos, size FROM millrace_outbox FORCE INDEX (millrace_outbox_ready)
				WHERE ready = 1 AND topic = %s AND lane = %d%s ORDER BY pos LIMIT %d)`, hex(topic), lane, exclude[lane], perPart))
		}
	}
	return d.rowsText(q, strings.Join(parts, " UNION ALL "))
}

// rowsText is the lowest rows of a query of positions, as many as are asked for.
func (d *mysql) rowsText(q Read, positions string) string {
	text := fmt.Sprintf(`WITH c AS (SELECT u.pos, u.size FROM (%s) u ORDER BY u.pos LIMIT %d),
		s AS (SELECT pos, row_number() OVER (ORDER BY pos) AS n, sum(size) OVER (ORDER BY pos) AS bytes, count(*) OVER () AS candidates FROM c)
		SELECT %s, s.candidates, %s FROM s STRAIGHT_JOIN millrace_outbox o FORCE INDEX (PRIMARY) ON o.pos = s.pos WHERE s.n = 1 OR s.bytes <= %d ORDER BY o.pos`,
		positions, q.MaxRows, mysqlColumns, mysqlEarly, q.MaxBytes)
	return rename(text, d.prefix)
}
