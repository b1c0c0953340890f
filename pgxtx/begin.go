package pgxtx

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// begin sends BEGIN alone, unless it has been sent. When it fails the connection is closed: nothing may run there
// outside of a transaction.
func (c *conn) begin(ctx context.Context) error {
	if c.begun {
		return nil
	}
	c.begun = true
	tx, err := c.BeginTx(ctx, pgx.TxOptions{BeginQuery: c.text}) // which closes the connection
	if err != nil {
		return fmt.Errorf("pgxtx: begin: %w", err)
	}
	c.tx = tx
	return nil
}

// first sends BEGIN and the transaction's first statement in one round trip. It returns nil where the statement is to
// be run as pgx runs it, in the transaction that has been begun.
func (c *conn) first(ctx context.Context, sql string, args []any, exec bool) (*opening, error) {
	if c.used {
		return nil, c.begin(ctx)
	}
	c.used = true
	text, values, ok := rewritten(ctx, c.Conn, sql, args)
	switch {
	case !ok,
		exec && len(values) == 0, // pgx executes texts of several statements
		len(text) > maxText,
		!strings.ContainsAny(text, " \t\n"): // the name of a prepared statement
		return nil, c.begin(ctx)
	case c.begun:
		c.note(text)
		return nil, nil
	}
	var b pgconn.Batch
	ready, err := c.queue(ctx, &b, c.text, nil)
	if ready {
		ready, err = c.queue(ctx, &b, text, values)
	}
	if !ready {
		return nil, c.beginAfter(ctx, err)
	}
	o := &opening{c: c, text: text, ctx: ctx}
	if c.tracer != nil {
		o.ctx = c.tracer.TraceQueryStart(ctx, c.Conn, pgx.TraceQueryStartData{SQL: sql, Args: args})
	}
	c.begun = true
	o.results = c.PgConn().ExecBatch(o.ctx, &b)
	if o.results.NextResult() {
		return o, nil // to BEGIN there is one answer, or an error
	}
	err = o.results.Close()
	o.end(pgconn.CommandTag{}, err)
	c.begun = false // the server skips what follows an error; it may have dropped what was prepared
	clear(c.known)
	return nil, c.beginAfter(ctx, err)
}

// beginAfter is begin after err, which tells why if the connection is lost.
func (c *conn) beginAfter(ctx context.Context, err error) error {
	if c.IsClosed() {
		return fmt.Errorf("pgxtx: begin: %w", err)
	}
	return c.begin(ctx)
}

// rewritten is the statement without pgx's named arguments, or false where it has other options, which only pgx knows
// to follow.
func rewritten(ctx context.Context, c *pgx.Conn, sql string, args []any) (string, []any, bool) {
	if len(args) == 0 {
		return sql, args, true
	}
	switch arg := args[0].(type) {
	case pgx.NamedArgs, pgx.StrictNamedArgs:
		if len(args) > 1 {
			return "", nil, false
		}
		text, values, err := arg.(pgx.QueryRewriter).RewriteQuery(ctx, c, sql, nil)
		return text, values, err == nil
	case pgx.QueryRewriter, pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
		return "", nil, false
	}
	return sql, args, true
}

// queue adds a statement to b. It returns false if that cannot be; there is an error if the connection was lost.
func (c *conn) queue(ctx context.Context, b *pgconn.Batch, sql string, args []any) (bool, error) {
	var d *pgconn.StatementDescription
	switch c.mode {
	case pgx.QueryExecModeExec:
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe:
		var err error
		if d, err = c.describe(ctx, sql); d == nil {
			return false, err
		}
	default: // describes each time, or puts several statements into one text
		return false, nil
	}
	var e pgx.ExtendedQueryBuilder
	switch err := e.Build(c.TypeMap(), d, args); {
	case err != nil:
		return false, nil // pgx says it again
	case d == nil:
		b.ExecParams(sql, e.ParamValues, nil, e.ParamFormats, e.ResultFormats)
	case d.Name == "":
		b.ExecParams(sql, e.ParamValues, d.ParamOIDs, e.ParamFormats, e.ResultFormats)
	default:
		b.ExecPrepared(d.Name, e.ParamValues, e.ParamFormats, e.ResultFormats)
	}
	return true, nil
}

// session is what a connection remembers from one transaction to the next.
type session struct {
	mode   pgx.QueryExecMode
	tracer pgx.QueryTracer
	// tx is pgx's own transaction. It is ended by itself only if its large objects were given away; else it serves the
	// next one as well.
	tx pgx.Tx
	// known are first statements by their text, nil if they were seen once. pgx does not share what it knows.
	known  map[string]*pgconn.StatementDescription
	serial int
}

const (
	sessionKey = "github.com/millrace-go/millrace/pgxtx"
	maxKnown   = 256 // on one connection
	maxText    = 4 << 10
)

func sessionOf(c *pgx.Conn) *session {
	all := c.PgConn().CustomData()
	s, ok := all[sessionKey].(*session)
	if !ok {
		cfg := c.Config()
		s = &session{mode: cfg.DefaultQueryExecMode, tracer: cfg.Tracer, known: map[string]*pgconn.StatementDescription{}}
		all[sessionKey] = s
	}
	return s
}

// note remembers that sql was a first statement.
func (s *session) note(sql string) {
	if _, seen := s.known[sql]; seen {
		return
	}
	if len(s.known) >= maxKnown {
		for text, d := range s.known {
			if d == nil {
				delete(s.known, text)
			}
		}
	}
	if len(s.known) < maxKnown {
		s.known[sql] = nil
	}
}

// describe returns what the server has said of sql, or nil. It is asked when sql is used for the second time: texts
// that are made up each time are not worth it.
func (c *conn) describe(ctx context.Context, sql string) (*pgconn.StatementDescription, error) {
	d, seen := c.known[sql]
	switch {
	case d != nil && d.SQL != "":
		return d, nil
	case d != nil:
		return nil, nil
	case !seen && sql != c.text:
		c.note(sql)
		return nil, nil
	}
	name := ""
	if c.mode == pgx.QueryExecModeCacheStatement {
		c.serial++
		name = fmt.Sprintf("millrace_%d", c.serial)
	}
	d, err := c.Prepare(ctx, name, sql)
	if err != nil {
		c.known[sql] = &pgconn.StatementDescription{} // never again
		return nil, err
	}
	c.known[sql] = d
	return d, nil
}

// forget is called when sql has failed, which may be because the tables have changed.
func (c *conn) forget(sql string) {
	if d := c.known[sql]; d != nil {
		c.stale = d.Name
	}
	delete(c.known, sql)
}
