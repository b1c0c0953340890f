package pgxtx

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// opening is the answer to BEGIN and a transaction's first statement.
type opening struct {
	c       *conn
	text    string
	ctx     context.Context // of the trace
	results *pgconn.MultiResultReader
}

// end is called once the answer has been read.
func (o *opening) end(tag pgconn.CommandTag, err error) {
	if err != nil {
		o.c.forget(o.text)
	}
	if o.c.tracer != nil {
		o.c.tracer.TraceQueryEnd(o.ctx, o.c.Conn, pgx.TraceQueryEndData{CommandTag: tag, Err: err})
	}
}

func (o *opening) exec() (tag pgconn.CommandTag, err error) {
	for o.results.NextResult() {
		tag, _ = o.results.ResultReader().Close() // an error comes again
	}
	err = o.results.Close()
	o.end(tag, err)
	return tag, err
}

func (o *opening) query() pgx.Rows {
	if !o.results.NextResult() {
		_, err := o.exec()
		return failed{err: err}
	}
	return &firstRows{Rows: pgx.RowsFromResultReader(o.c.TypeMap(), o.results.ResultReader()), o: o}
}

// firstRows end what BEGIN has begun to answer when they are closed, by whatever closes rows.
type firstRows struct {
	pgx.Rows
	o   *opening
	end bool
	err error // that came behind the last row
}

func (r *firstRows) Close() {
	r.Rows.Close()
	if r.end {
		return
	}
	r.end = true
	r.err = r.o.results.Close()
	r.o.end(r.CommandTag(), r.Err())
}

func (r *firstRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

func (r *firstRows) Next() bool {
	more := r.Rows.Next()
	if !more {
		r.Close()
	}
	return more
}

func (r *firstRows) Scan(dest ...any) error {
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *firstRows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

func (r *firstRows) Conn() *pgx.Conn { return r.o.c.Conn }

// firstRow is QueryRow's.
type firstRow struct{ pgx.Rows }

func (r firstRow) Scan(dest ...any) error {
	defer r.Close()
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			return errors.New("pgxtx: *pgtype.DriverBytes of QueryRow would not outlive it")
		}
	}
	if !r.Next() {
		if err := r.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.Rows.Scan(dest...); err != nil {
		return err
	}
	r.Close()
	return r.Err()
}
