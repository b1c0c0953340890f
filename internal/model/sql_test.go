package model_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// command is a statement that the half messages make, read once. All that stands in a WHERE or a SET is evaluated, so
// that a condition that is missing in production is missing here.
type command struct {
	verb    string // INSERT, UPDATE, DELETE, SELECT
	table   string
	columns []string // of an INSERT or UPDATE
	values  []value  // of these columns, or what a SELECT wants
	where   value    // nil: all rows
	order   string   // "": by id
	limit   value    // nil: none
	locks   bool     // FOR UPDATE
	skips   bool     // SKIP LOCKED
	ignores bool     // ON CONFLICT DO NOTHING
}

// value is an expression: an int64, a string, bytes, a bool, or nil for NULL.
type value func(e *scope) any

type scope struct {
	now  int64 // microseconds since 1970, as are all times
	args []any
	row  record
}

var (
	epoch    = regexp.MustCompile(`extract\(epoch from ([^()]*)\) \* 1000000`)
	lexeme   = regexp.MustCompile(`'[^']*'|\$\d+|\w+|<=|>=|[^\s]`)
	commands sync.Map // by text
)

// parse reads a statement. Times are numbers here, so what makes numbers of times goes first.
func parse(text string) (c *command, err error) {
	if known, ok := commands.Load(text); ok {
		return known.(*command), nil
	}
	plain := strings.ReplaceAll(text, "clock_timestamp()", "now")
	plain = epoch.ReplaceAllString(plain, "$1")
	plain = strings.NewReplacer(" * interval '1 microsecond'", "", "::bigint", "").Replace(plain)
	p := &parser{words: lexeme.FindAllString(plain, -1)}
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("model: this database does not know: %s (%v)", text, v)
		}
	}()
	c = p.command()
	p.end()
	commands.Store(text, c)
	return c, nil
}

// parser reads words. It panics where it does not know further.
type parser struct{ words []string }

func (p *parser) next() string {
	if len(p.words) == 0 {
		panic("there is nothing more")
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w
}

// skip takes the words if they come now.
func (p *parser) skip(words ...string) bool {
	if len(p.words) < len(words) {
		return false
	}
	for i, w := range words {
		if p.words[i] != w {
			return false
		}
	}
	p.words = p.words[len(words):]
	return true
}

func (p *parser) want(words ...string) {
	if !p.skip(words...) {
		panic(fmt.Sprint("want ", words, " at ", p.words))
	}
}

func (p *parser) end() {
	if len(p.words) > 0 {
		panic(fmt.Sprint("did not expect ", p.words))
	}
}

func (p *parser) command() *command {
	c := &command{verb: p.next()}
	switch c.verb {
	case "INSERT":
		p.want("INTO")
		c.table = p.next()
		p.want("(")
		c.columns = p.names()
		p.want(")")
		if p.skip("VALUES", "(") {
			c.values = p.list()
			p.want(")")
		} else {
			p.want("SELECT")
			c.values = p.list()
			p.tail(c)
		}
		c.ignores = p.skip("ON", "CONFLICT", "(", "id", ")", "DO", "NOTHING")
	case "UPDATE":
		c.table = p.next()
		p.want("SET")
		for more := true; more; more = p.skip(",") {
			c.columns = append(c.columns, p.next())
			p.want("=")
			c.values = append(c.values, p.sum())
		}
		p.tail(c)
	case "SELECT":
		c.values = p.list()
		p.want("FROM")
		c.table = p.next()
		p.tail(c)
	case "DELETE": // of what a SELECT of the same table finds
		p.want("FROM")
		c.table = p.next()
		p.want("WHERE", "id", "IN", "(", "SELECT", "id", "FROM", c.table)
		p.tail(c)
		p.want(")")
	default:
		panic(c.verb)
	}
	return c
}

// tail is what may follow: each part in its place.
func (p *parser) tail(c *command) {
	if p.skip("WHERE") {
		c.where = p.all()
	}
	if p.skip("ORDER", "BY") {
		c.order = p.next()
	}
	if p.skip("LIMIT") {
		c.limit = p.sum()
	}
	c.locks = p.skip("FOR", "UPDATE")
	c.skips = p.skip("SKIP", "LOCKED")
}

func (p *parser) names() (all []string) {
	for more := true; more; more = p.skip(",") {
		all = append(all, p.next())
	}
	return all
}

func (p *parser) list() (all []value) {
	for more := true; more; more = p.skip(",") {
		all = append(all, p.sum())
	}
	return all
}

// all is conditions with AND between.
func (p *parser) all() value {
	left := p.comparison()
	for p.skip("AND") {
		a, b := left, p.comparison()
		left = func(e *scope) any { return a(e) == true && b(e) == true }
	}
	return left
}

func (p *parser) comparison() value {
	a, op := p.sum(), p.next()
	b := p.sum()
	holds := map[string]func(int) bool{
		"=": func(n int) bool { return n == 0 }, "<": func(n int) bool { return n < 0 }, "<=": func(n int) bool { return n <= 0 },
		">": func(n int) bool { return n > 0 }, ">=": func(n int) bool { return n >= 0 },
	}[op]
	if holds == nil {
		panic("unknown comparison " + op)
	}
	return func(e *scope) any {
		x, y := a(e), b(e)
		return x != nil && y != nil && holds(order(x, y))
	}
}

// order compares what is not NULL.
func order(x, y any) int {
	if a, ok := x.(int64); ok {
		b := y.(int64)
		switch {
		case a < b:
			return -1
		case a > b:
			return 1
		}
		return 0
	}
	return strings.Compare(x.(string), y.(string))
}

func (p *parser) sum() value {
	left := p.atom()
	for {
		sign := int64(1)
		if p.skip("-") {
			sign = -1
		} else if !p.skip("+") {
			return left
		}
		a, b := left, p.atom()
		left = func(e *scope) any {
			x, y := a(e), b(e)
			if x == nil || y == nil {
				return nil
			}
			return x.(int64) + sign*y.(int64)
		}
	}
}

func (p *parser) atom() value {
	switch w := p.next(); {
	case w == "(":
		v := p.sum()
		p.want(")")
		return v
	case w == "now":
		return func(e *scope) any { return e.now }
	case w == "COALESCE":
		p.want("(")
		all := p.list()
		p.want(")")
		return func(e *scope) any {
			for _, v := range all {
				if x := v(e); x != nil {
					return x
				}
			}
			return nil
		}
	case w == "CASE":
		p.want("WHEN")
		when := p.all()
		p.want("THEN")
		then := p.sum()
		p.want("ELSE")
		otherwise := p.sum()
		p.want("END")
		return func(e *scope) any {
			if when(e) == true {
				return then(e)
			}
			return otherwise(e)
		}
	case w[0] == '\'':
		return func(*scope) any { return w[1 : len(w)-1] }
	case w[0] == '$':
		n, err := strconv.Atoi(w[1:])
		if err != nil {
			panic(err)
		}
		return func(e *scope) any { return plainly(e.args[n-1]) }
	case w[0] >= '0' && w[0] <= '9':
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			panic(err)
		}
		return func(*scope) any { return n }
	case w[0] >= 'a' && w[0] <= 'z':
		return func(e *scope) any {
			v, there := e.row[w]
			if !there {
				panic("model: there is no column " + w)
			}
			return v
		}
	default:
		panic("unknown word " + w)
	}
}

// plainly makes of a parameter what a row has.
func plainly(v any) any {
	if n, ok := v.(int); ok {
		return int64(n)
	}
	return v
}
