package outbox

import (
	"regexp"
	"strings"

	"github.com/millrace-go/millrace/internal/txn"
)

// What the databases call differently; see dialect.translate.

var (
	usOf        = regexp.MustCompile(`\{us (\w+)\}`)
	ageOf       = regexp.MustCompile(`\{age (\w+)\}`)
	beforeParam = regexp.MustCompile(`\{before (\$\d+)\}`)
	atOf        = regexp.MustCompile(`\{at (\$\d+)\}`)
)

var byIndex = regexp.MustCompile(`\{(from|update|delete) (\w+) (\w+)\}`)

// anyIndex translates {from t i} and its like for databases that lock nothing but what they change.
func anyIndex(text string) string {
	return byIndex.ReplaceAllStringFunc(text, func(s string) string {
		m := byIndex.FindStringSubmatch(s)
		return map[string]string{"from": "FROM ", "update": "UPDATE ", "delete": "DELETE FROM "}[m[1]] + m[2]
	})
}

// translator is the translate of a dialect.
func translator(kind txn.Dialect) func(common string) string {
	switch kind {
	case txn.MySQL:
		return mysqlText
	case txn.SQLite:
		return sqliteText
	}
	return postgresText
}

// Bounds of what is stored about a refusal.
const (
	maxReason = 64
	maxError  = 1000

	// Of many refusals of a message the first ones are remembered one by one.
	mostHistory = 20
	maxHistory  = "20"
)

// bounded keeps the texts of a refusal to what every database stores.
func bounded(f Refused) Refused {
	f.Reason = clip(f.Reason, maxReason)
	f.Error = clip(f.Error, maxError)
	return f
}

func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
}
