package sqlstore

import (
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// statements are written once, in a common form: ? for arguments, {now} for the time of the database,
// {later} for that many microseconds (one argument) from now, {lock} and {skip} for row locks, {by due},
// {by order} and {by pos} for the index: on a small table MySQL would scan all of it, and lock for a moment what
// others then skip, or wait for what they have locked.
type statements struct {
	dialect txn.Dialect

	look, busy, tail, insert, raise          string
	wait, due, lease, setAside, clear        string
	renew, begin, give, remove, removeLonely string
	next, holds, stats                       string

	put, list, get, letters, bury, revive, note, audit string
}

// letters begins the statements that read them.
const letters = `SELECT id, {died}, reason, error, attempts, message_id, order_key, topic, history, head, `

func translate(d txn.Dialect) *statements {
	s := &statements{dialect: d,
		look: `SELECT CASE WHEN EXISTS (SELECT 1 FROM millrace_delayed WHERE grp = ? AND message_id = ?) THEN 1
			WHEN EXISTS (SELECT 1 FROM millrace_dead_letters WHERE grp = ? AND message_id = ?) THEN 3
			WHEN EXISTS (SELECT 1 FROM millrace_delayed WHERE grp = ? AND order_key = ? AND order_key <> '') THEN 2 ELSE 0 END`,
		busy: `SELECT 1 FROM millrace_delayed WHERE grp = ? AND order_key = ? AND order_key <> '' LIMIT 1`,
		// Whoever appends to a key and whoever takes its last message away lock this row.
		tail: `SELECT pos FROM millrace_delayed {by order} WHERE grp = ? AND order_key = ? AND order_key <> '' ORDER BY pos DESC LIMIT 1 {lock}`,
		insert: `INSERT INTO millrace_delayed (grp, message_id, order_key, attempts, history, head, payload, due_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, {later})`,
		raise: `UPDATE millrace_delayed SET attempts = ? WHERE grp = ? AND message_id = ? AND attempts < ?`,

		wait: `SELECT {wait} FROM millrace_delayed {by due} WHERE grp = ? AND due_at IS NOT NULL ORDER BY due_at LIMIT 1`,
		due: `SELECT pos, message_id, order_key, attempts, history, head, payload FROM millrace_delayed {by due} WHERE grp = ? AND due_at <= {now}
			ORDER BY due_at LIMIT ? {skip}`,
		lease: `UPDATE millrace_delayed {by pos} SET owner = ?, due_at = {later} WHERE pos IN (`,
		setAside: `INSERT INTO millrace_dead_letters (grp, message_id, order_key, died_at, topic, reason, error, attempts, history, head, payload)
			SELECT grp, message_id, order_key, {now}, ?, ?, ?, attempts, history, head, payload
			FROM millrace_delayed WHERE pos = ? AND owner = ?`,
		clear: `DELETE FROM millrace_delayed WHERE pos = ? AND owner = ?`,

		holds: `SELECT 1 FROM millrace_delayed WHERE grp = ? AND message_id = ? AND owner = ? AND owner <> ''`,
		renew: `UPDATE millrace_delayed SET due_at = {later} WHERE grp = ? AND message_id = ? AND owner = ? AND owner <> ''`,
		begin: `UPDATE millrace_delayed SET attempts = ? WHERE grp = ? AND message_id = ? AND owner = ? AND owner <> '' AND attempts < ?`,
		give: `UPDATE millrace_delayed SET owner = '', attempts = ?, history = ?, due_at = {later}
			WHERE grp = ? AND message_id = ? AND owner = ? AND owner <> ''`,
		removeLonely: `DELETE FROM millrace_delayed WHERE grp = ? AND message_id = ? AND owner = ? AND owner <> '' AND order_key = ''`,
		remove:       `DELETE FROM millrace_delayed WHERE grp = ? AND message_id = ? AND owner = ? AND owner <> ''`,
		next: `UPDATE millrace_delayed SET due_at = {now} WHERE due_at IS NULL AND pos IN (
			SELECT pos FROM (SELECT min(pos) AS pos FROM millrace_delayed WHERE grp = ? AND order_key = ?) AS first)`,
		stats: `SELECT count(*), coalesce(sum(CASE WHEN due_at <= {now} THEN 1 ELSE 0 END), 0),
			coalesce(sum(CASE WHEN due_at > {now} AND owner <> '' THEN 1 ELSE 0 END), 0),
			coalesce(sum(CASE WHEN due_at IS NULL THEN 1 ELSE 0 END), 0),
			(SELECT count(*) FROM millrace_dead_letters WHERE grp = ?)
			FROM millrace_delayed WHERE grp = ?`,

		put: `INSERT INTO millrace_dead_letters (grp, message_id, order_key, died_at, topic, reason, error, attempts, history, head, payload)
			VALUES (?, ?, ?, {now}, ?, ?, ?, ?, ?, ?, ?)`,
		list:    letters + `length(payload) FROM millrace_dead_letters WHERE grp = ? AND id > ?`,
		get:     letters + `payload FROM millrace_dead_letters WHERE grp = ? AND id = ?`,
		letters: letters + `payload FROM millrace_dead_letters WHERE grp = ? AND id = ? {lock}`,
		bury:    `DELETE FROM millrace_dead_letters WHERE id = ?`,
		revive: `UPDATE millrace_delayed SET attempts = 0, owner = '', history = ?, due_at = CASE WHEN due_at IS NULL THEN NULL ELSE {now} END
			WHERE grp = ? AND message_id = ?`,
		note: `INSERT INTO millrace_dead_audit (grp, decided_at, action, letter, message_id, new_id, who, why)
			VALUES (?, {now}, ?, ?, ?, ?, ?, ?)`,
		audit: `SELECT id, {decided}, action, letter, message_id, new_id, who, why FROM millrace_dead_audit
			WHERE grp = ? AND id > ? ORDER BY id LIMIT ?`,
	}
	if d == txn.MySQL { // which reads, and locks, the whole table if the first is asked for by IN
		s.next = `UPDATE (SELECT min(pos) AS pos FROM millrace_delayed {by order} WHERE grp = ? AND order_key = ?) AS first
			STRAIGHT_JOIN millrace_delayed d FORCE INDEX (PRIMARY) ON d.pos = first.pos SET d.due_at = {now} WHERE d.due_at IS NULL`
	}
	for _, text := range s.all() {
		*text = s.text(*text)
	}
	return s
}

func (s *statements) all() []*string {
	return []*string{&s.look, &s.busy, &s.tail, &s.insert, &s.raise, &s.wait, &s.due, &s.lease, &s.setAside, &s.clear, &s.renew, &s.begin,
		&s.give, &s.remove, &s.removeLonely, &s.next, &s.holds, &s.stats, &s.put, &s.list, &s.get, &s.letters, &s.bury,
		&s.revive, &s.note, &s.audit}
}

var words = map[txn.Dialect]*strings.Replacer{
	txn.Postgres: strings.NewReplacer(
		"{now}", "clock_timestamp()", "{later}", "clock_timestamp() + ?::bigint * interval '1 microsecond'",
		"{wait}", "(extract(epoch FROM due_at - clock_timestamp()) * 1000000)::bigint",
		"{died}", "(extract(epoch FROM died_at) * 1000000)::bigint", "{decided}", "(extract(epoch FROM decided_at) * 1000000)::bigint",
		"{lock}", "FOR UPDATE", "{skip}", "FOR UPDATE SKIP LOCKED", "{by due}", "", "{by order}", "", "{by pos}", ""),
	txn.MySQL: strings.NewReplacer(
		"{now}", "UTC_TIMESTAMP(6)", "{later}", "UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND",
		"{wait}", "TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), due_at)",
		"{died}", "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', died_at)", "{decided}", "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', decided_at)",
		"{lock}", "FOR UPDATE", "{skip}", "FOR UPDATE SKIP LOCKED",
		"{by due}", "FORCE INDEX (millrace_delayed_due)", "{by order}", "FORCE INDEX (millrace_delayed_order)",
		"{by pos}", "FORCE INDEX (PRIMARY)"),
	txn.SQLite: strings.NewReplacer(
		"{now}", "CAST(unixepoch('subsec') * 1000000 AS INTEGER)", "{later}", "CAST(unixepoch('subsec') * 1000000 AS INTEGER) + ?",
		"{wait}", "due_at - CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
		"{died}", "died_at", "{decided}", "decided_at",
		"{lock}", "", "{skip}", "", "{by due}", "", "{by order}", "", "{by pos}", ""),
}

// text puts the common form into the words of the database.
func (s *statements) text(common string) string {
	text := words[s.dialect].Replace(common)
	if s.dialect != txn.Postgres {
		return text
	}
	return renumber(text, 0)
}

// renumber replaces each ? by the number of its argument, in the words of PostgreSQL, after the first n.
func renumber(text string, n int) string {
	var b strings.Builder
	for _, r := range text {
		if r != '?' {
			b.WriteRune(r)
			continue
		}
		n++
		b.WriteString("$" + strconv.Itoa(n))
	}
	return b.String()
}
