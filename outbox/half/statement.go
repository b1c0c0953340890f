package half

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// Statements are written once, with $1, $2 … for parameters and
//
//	{now}        the database's time
//	{after $1}   the time that many microseconds from now
//	{before $1}  the time that many microseconds ago
//	{micros c}   the time in column c as microseconds since 1970
//	{age c}      how many microseconds ago that was

var (
	span  = regexp.MustCompile(`\{(after|before) (\$\d+)\}`)
	unix  = regexp.MustCompile(`\{micros ([a-z_]+)\}`)
	age   = regexp.MustCompile(`\{age ([a-z_]+)\}`)
	param = regexp.MustCompile(`\$(\d+)`)
)

const sqliteNow = `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`

// statement puts a statement and its arguments into the form of a database.
func statement(d txn.Dialect, text string, args []any) (string, []any) {
	sign := func(m string) string { return map[bool]string{true: "+", false: "-"}[strings.HasPrefix(m, "{after")] }
	switch d {
	case txn.Postgres:
		text = span.ReplaceAllStringFunc(text, func(m string) string {
			return "clock_timestamp() " + sign(m) + " " + span.FindStringSubmatch(m)[2] + "::bigint * interval '1 microsecond'"
		})
		text = unix.ReplaceAllString(text, `(extract(epoch from $1) * 1000000)::bigint`)
		text = age.ReplaceAllString(text, `(extract(epoch from clock_timestamp() - $1) * 1000000)::bigint`)
		return strings.ReplaceAll(text, "{now}", "clock_timestamp()"), args
	case txn.MySQL:
		text = span.ReplaceAllStringFunc(text, func(m string) string {
			return "UTC_TIMESTAMP(6) " + sign(m) + " INTERVAL " + span.FindStringSubmatch(m)[2] + " MICROSECOND"
		})
		text = unix.ReplaceAllString(text, `TIMESTAMPDIFF(MICROSECOND, '1970-01-01', $1)`)
		text = age.ReplaceAllString(text, `TIMESTAMPDIFF(MICROSECOND, $1, UTC_TIMESTAMP(6))`)
		text = strings.ReplaceAll(text, "{now}", "UTC_TIMESTAMP(6)")
		var ordered []any // as they stand in the text
		text = param.ReplaceAllStringFunc(text, func(m string) string {
			n, _ := strconv.Atoi(m[1:])
			ordered = append(ordered, args[n-1])
			return "?"
		})
		return text, ordered
	default:
		text = span.ReplaceAllStringFunc(text, func(m string) string {
			return sqliteNow + " " + sign(m) + " " + span.FindStringSubmatch(m)[2]
		})
		text = unix.ReplaceAllString(text, `$1`)
		text = age.ReplaceAllString(text, sqliteNow+` - $1`)
		text = strings.ReplaceAll(text, "{now}", sqliteNow)
		return param.ReplaceAllString(text, "?$1"), args
	}
}

// exec runs a statement of that form.
func exec(ctx context.Context, q txn.Querier, d txn.Dialect, text string, args ...any) (int64, error) {
	text, args = statement(d, text, args)
	return q.Exec(ctx, text, args...)
}

// query runs a statement of that form.
func query(ctx context.Context, q txn.Querier, d txn.Dialect, text string, args []any, row func(txn.Scanner) error) error {
	text, args = statement(d, text, args)
	return q.Query(ctx, text, args, row)
}

func micros(d time.Duration) int64 { return d.Microseconds() }

// fromMicros is the zero time for 0.
func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}
