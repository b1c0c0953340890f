package outbox

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// sqlite is the store on SQLite, which has one writer at a time. Times are microseconds.
type sqlite struct {
	steps
}

func newSQLite(s *sqlStore) *sqlite {
	return &sqlite{steps{sqlStore: s, waiting: sqliteWaiting, both: `%s UNION ALL %s`, byPosition: byPosition{
		pick:   `SELECT %s FROM millrace_outbox o WHERE o.pos IN (%s)`,
		change: `UPDATE millrace_outbox AS o SET %s WHERE %s AND o.pos IN (%s)`,
		erase:  `DELETE FROM millrace_outbox WHERE pos IN (%s)`,
		names:  `SELECT s.id FROM millrace_outbox o JOIN millrace_schedules s ON s.id = o.id WHERE o.pos IN (%s)`,
		take: `INSERT OR IGNORE INTO millrace_sending (id, name)
			SELECT s.id, s.name FROM millrace_outbox o JOIN millrace_schedules s ON s.id = o.id WHERE o.pos IN (%s)`,
		forget: `DELETE FROM millrace_sending WHERE id IN (SELECT id FROM millrace_outbox WHERE pos IN (%s))`,
		unname: `DELETE FROM millrace_schedules WHERE id IN (SELECT id FROM millrace_outbox WHERE pos IN (%s))`,
	}}}
}

const sqliteNow = `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`

var param = regexp.MustCompile(`\$(\d+)`)

func (d *sqlite) translate(text string) string { return sqliteText(text) }

func sqliteText(text string) string {
	text = afterParam.ReplaceAllString(anyIndex(text), sqliteNow+` + $1`)
	text = beforeParam.ReplaceAllString(text, `(`+sqliteNow+` - $1)`)
	text = ageOf.ReplaceAllString(text, `(`+sqliteNow+` - $1)`)
	text = usOf.ReplaceAllString(text, `$1`)
	text = atOf.ReplaceAllString(text, `$1`)
	text = strings.NewReplacer("{now}", sqliteNow, "{ready}", "ready = 1", "{unready}", "ready = 0", "{until}", "min(due_at) - "+sqliteNow).Replace(text)
	return param.ReplaceAllString(text, `?$1`)
}

// As on PostgreSQL; the lateral join is a correlated list of positions, the arrays are JSON.
const sqliteRead = `WITH c AS MATERIALIZED (
	SELECT o.pos, o.size
	FROM json_each($1) l CROSS JOIN json_each($2) t CROSS JOIN millrace_outbox o
	WHERE o.pos IN (
		SELECT p.pos FROM millrace_outbox p
		WHERE p.ready = 1 AND p.topic = t.value AND p.lane = l.value
		  AND p.pos NOT IN (SELECT value FROM json_each($3))
		  AND p.order_key NOT IN (SELECT value FROM json_each($4))
		ORDER BY p.pos LIMIT $5)
	ORDER BY o.pos LIMIT $6),
s AS (
	SELECT pos, row_number() OVER w AS n, sum(size) OVER w AS bytes, count(*) OVER () AS candidates
	FROM c WINDOW w AS (ORDER BY pos))
SELECT ` + sqliteColumns + `, s.candidates
FROM s JOIN millrace_outbox o ON o.pos = s.pos
WHERE s.n = 1 OR s.bytes <= $7
ORDER BY o.pos`

const sqliteColumns = `o.pos, o.id, o.lane, o.topic, o.order_key, o.attempts, o.size, o.metadata, o.payload, o.created_at, o.schedule IS NOT NULL`

func (d *sqlite) read(ctx context.Context, q Read) ([]Row, error) {
	args := []any{jsonArray(q.Lanes), jsonArray(q.Topics), jsonArray(q.Exclude), jsonArray(q.BusyKeys), 0, q.MaxRows, q.MaxBytes}
	for perPart := share(q, shareOfFew); ; perPart = q.MaxRows {
		var rows []Row
		candidates := 0
		args[4] = perPart
		in := newRowReader(&candidates)
		err := d.query(ctx, "read", sqliteRead, args, func(row txn.Scanner) error {
			r, err := in.read(row)
			rows = append(rows, r)
			return err
		})
		if err != nil || !short(q, rows, candidates, perPart) {
			return rows, err
		}
	}
}

// jsonArray is values as JSON; none is [], never null.
func jsonArray[T int | int64 | string](values []T) string {
	if len(values) == 0 {
		return "[]"
	}
	text, err := json.Marshal(values)
	if err != nil {
		panic("outbox: " + err.Error()) // cannot happen: numbers and strings
	}
	return string(text)
}
