package txn

import "strings"

// verb is what a statement does to the transaction that it runs in.
type verb int

const (
	plain    verb = iota
	opaque        // may hide the end of the transaction: CALL, EXECUTE
	control       // BEGIN, COMMIT, ROLLBACK
	implicit      // commits implicitly (MySQL)
	save
	rollbackTo
	release
)

// effect is a verb with the name of its savepoint.
type effect struct {
	verb verb
	name string
}

// scan finds what the statements of text do to the transaction. Text without effect, which is nearly
// all, costs no allocation.
func scan(d Dialect, text string) []effect {
	var found []effect
	for text != "" {
		var words [5]string
		n := 0
		text = statement(d, text, func(word string) {
			if n < len(words) {
				words[n] = word
				n++
			}
		})
		if e := judge(d, words[:n]); e.verb != plain {
			found = append(found, e)
		}
	}
	return found
}

// Writes reports whether text may write, judged by its first words.
func Writes(text string) bool {
	first, writes := true, false
	statement(SQLite, text, func(word string) {
		switch w := strings.ToUpper(word); {
		case first && (w == "SELECT" || w == "VALUES" || w == "EXPLAIN" || w == "PRAGMA" || w == "WITH"):
		case first, w == "INSERT", w == "UPDATE", w == "DELETE", w == "REPLACE":
			writes = true
		}
		first = false
	})
	return writes
}

func judge(d Dialect, w []string) effect {
	if len(w) == 0 {
		return effect{}
	}
	is := func(i int, names ...string) bool {
		for _, name := range names {
			if i < len(w) && strings.EqualFold(w[i], name) {
				return true
			}
		}
		return false
	}
	name := func(i int) string {
		if is(i, "SAVEPOINT") {
			i++
		}
		if i < len(w) {
			return strings.ToLower(strings.Trim(w[i], "\"`"))
		}
		return ""
	}
	switch {
	case is(0, "SAVEPOINT"):
		return effect{save, name(1)}
	case is(0, "RELEASE"):
		return effect{release, name(1)}
	case is(0, "ROLLBACK") && is(1, "TO"):
		return effect{rollbackTo, name(2)}
	case is(0, "ROLLBACK") && is(1, "WORK", "TRANSACTION") && is(2, "TO"):
		return effect{rollbackTo, name(3)}
	case is(0, "BEGIN", "COMMIT", "ROLLBACK", "END", "ABORT", "XA"),
		is(0, "START") && is(1, "TRANSACTION"),
		is(0, "PREPARE") && is(1, "TRANSACTION"):
		return effect{verb: control}
	case d == MySQL && commitsImplicitly(is):
		return effect{verb: implicit}
	case is(0, "CALL", "EXECUTE", "PREPARE", "DO"):
		return effect{verb: opaque}
	}
	return effect{}
}

// commitsImplicitly follows the list in MySQL's and MariaDB's manuals.
func commitsImplicitly(is func(int, ...string) bool) bool {
	switch {
	case is(0, "CREATE", "DROP"):
		return !is(1, "TEMPORARY")
	case is(0, "LOCK", "UNLOCK"):
		return is(1, "TABLES", "TABLE", "INSTANCE")
	case is(0, "SET"):
		return is(1, "AUTOCOMMIT", "@@AUTOCOMMIT", "PASSWORD") ||
			is(1, "SESSION", "LOCAL", "GLOBAL") && is(2, "AUTOCOMMIT")
	}
	return is(0, "ALTER", "TRUNCATE", "RENAME", "GRANT", "REVOKE", "ANALYZE", "OPTIMIZE", "REPAIR",
		"FLUSH", "RESET", "INSTALL", "UNINSTALL", "CACHE", "CHANGE")
}

// statement calls word for each word outside of quotes and comments of the first statement in text,
// and returns what follows its semicolon.
func statement(d Dialect, text string, word func(string)) string {
	for i := 0; i < len(text); {
		c := text[i]
		rest := text[i:]
		switch {
		case c == ';':
			return text[i+1:]
		case c == '\'':
			i += quoted(rest, c, d == MySQL || d == Postgres && escapes(text[:i]))
		case c == '"' || c == '`':
			n := quoted(rest, c, d == MySQL)
			word(rest[:n])
			i += n
		case strings.HasPrefix(rest, "--") || c == '#' && d == MySQL:
			i += until(rest, "\n")
		case strings.HasPrefix(rest, "/*!") && d == MySQL: // executed, unlike other comments
			i += 3
			for i < len(text) && text[i] >= '0' && text[i] <= '9' {
				i++
			}
		case strings.HasPrefix(rest, "/*"):
			i += comment(rest, d == Postgres)
		case c == '$' && d == Postgres:
			i += dollar(rest)
		case wordByte(c):
			n := 1
			for n < len(rest) && wordByte(rest[n]) {
				n++
			}
			word(rest[:n])
			i += n
		default:
			i++
		}
	}
	return ""
}

func wordByte(c byte) bool {
	return c == '_' || c == '@' || c >= 0x80 ||
		'0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// escapes tells whether before ends in the E of E'...', which is not that of LIKE'...'.
func escapes(before string) bool {
	n := len(before)
	return n > 0 && (before[n-1] == 'E' || before[n-1] == 'e') && (n == 1 || !wordByte(before[n-2]) && before[n-2] != '$')
}

// quoted is the length of the quoted text at the start of s; a doubled quote does not end it.
func quoted(s string, quote byte, backslash bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && backslash:
			i++
		case s[i] != quote:
		case i+1 < len(s) && s[i+1] == quote:
			i++
		default:
			return i + 1
		}
	}
	return len(s)
}

func until(s, end string) int {
	if i := strings.Index(s, end); i >= 0 {
		return i + len(end)
	}
	return len(s)
}

func comment(s string, nests bool) int {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch {
		case s[i] == '/' && s[i+1] == '*' && (nests || depth == 0):
			depth++
			i++
		case s[i] == '*' && s[i+1] == '/':
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}

// dollar is the length of the dollar-quoted text at the start of s, or 1 for a parameter ($1).
func dollar(s string) int {
	n := 1
	for n < len(s) && wordByte(s[n]) {
		n++
	}
	if n == len(s) || s[n] != '$' || n > 1 && s[1] >= '0' && s[1] <= '9' {
		return 1
	}
	tag := s[:n+1]
	return len(tag) + until(s[len(tag):], tag)
}
