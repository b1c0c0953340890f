package pgxtx_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

// modes are pgx's, and the round trips of BEGIN and a first statement with values, once the connection knows it.
var modes = map[string]struct {
	mode  pgx.QueryExecMode
	trips int64
}{
	"cache statement": {pgx.QueryExecModeCacheStatement, 1},
	"cache describe":  {pgx.QueryExecModeCacheDescribe, 1},
	"describe exec":   {pgx.QueryExecModeDescribeExec, 3},
	"exec":            {pgx.QueryExecModeExec, 1},
	"simple protocol": {pgx.QueryExecModeSimpleProtocol, 2},
}

// counted counts what is written, each of which is a round trip where it is little.
type counted struct {
	net.Conn
	writes *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// single is a database with one connection, whose round trips are counted.
type single struct {
	*pgxtx.DB
	pool  *pgxpool.Pool
	trips atomic.Int64
}

func openSingle(t *testing.T, url string, change func(*pgxpool.Config), settings ...millrace.Config) *single {
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.MaxConns = 1
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	if change != nil {
		change(cfg)
	}
	s := &single{}
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return counted{c, &s.trips}, err
	}
	s.pool, err = pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(s.pool.Close)
	_, err = s.pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS notes (note TEXT PRIMARY KEY);
		CREATE TABLE IF NOT EXISTS numbers (n INT)`)
	require.NoError(t, err)
	s.DB = pgxtx.Pool(s.pool, settings...)
	return s
}

// again runs fn in a transaction until the connection knows its first statement, and once more.
func (s *single) again(t *testing.T, fn func(ctx context.Context, tx pgx.Tx) error, o ...millrace.TxOption) (err error) {
	for range 3 {
		_, e := s.pool.Exec(t.Context(), "DELETE FROM notes; DELETE FROM numbers")
		require.NoError(t, e)
		err = millrace.InTx(t.Context(), s, fn, o...)
		require.Zero(t, s.pool.Stat().AcquiredConns())
	}
	return err
}

func (s *single) put(ctx context.Context, tx pgx.Tx, note string) error {
	_, err := tx.Exec(ctx, "INSERT INTO notes VALUES ($1)", note)
	return err
}

func TestBeginTravelsWithTheFirstStatement(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	for name, m := range modes {
		t.Run(name, func(t *testing.T) {
			s := openSingle(t, url, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = m.mode })
			for way, first := range map[string]func(ctx context.Context, tx pgx.Tx) error{
				"exec": func(ctx context.Context, tx pgx.Tx) error { return s.put(ctx, tx, "a") },
				"named arguments": func(ctx context.Context, tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "INSERT INTO notes VALUES (@note)", pgx.NamedArgs{"note": "a"})
					return err
				},
				"query": func(ctx context.Context, tx pgx.Tx) error {
					rows, err := tx.Query(ctx, "INSERT INTO notes VALUES ($1) RETURNING note", "a")
					require.NoError(t, err)
					_, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
					return err
				},
				"query row": func(ctx context.Context, tx pgx.Tx) error {
					var note string
					return tx.QueryRow(ctx, "INSERT INTO notes VALUES ($1) RETURNING note", "a").Scan(&note)
				},
			} {
				var trips int64
				require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error {
					before := s.trips.Load()
					err := first(ctx, tx)
					trips = s.trips.Load() - before
					return err
				}), way)
				require.Equal(t, m.trips, trips, way)
				require.Equal(t, "a", notes(t, s.pool))
			}
		})
	}
}

// journal is what became of a transaction, for comparison.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) say(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	fmt.Fprintf(&j.text, format+"\n", args...)
}

var serials = regexp.MustCompile(`stmtcache_\w+|millrace_\d+|[0-9]{5,} `)

// failed says what an error is: a server's by all that it says, another by its type.
func (j *journal) failed(what string, err error) {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		j.say("%s", what)
	case errors.As(err, &pg):
		j.say("%s: %s %s at %d, itself %t", what, pg.Code, pg.Message, pg.Position, errors.Is(err, pg))
	default:
		j.say("%s: %s", what, serials.ReplaceAllString(err.Error(), ""))
	}
}

func (j *journal) query(ctx context.Context, tx pgx.Tx, sql string, args ...any) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		require.Equal(nothing{}, err, rows.Err())
	}
	for rows.Next() {
		values, err := rows.Values()
		j.say("%v %v %d", values, err, len(rows.RawValues()))
	}
	if rows.Err() == nil { // else pgx may panic
		j.say("%d columns, %s", len(rows.FieldDescriptions()), rows.CommandTag())
	}
	j.failed("rows", rows.Err())
}

// nothing fails by a panic.
type nothing struct{}

func (nothing) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (nothing) FailNow()                          {}

// statements are what a transaction may begin with, and what it says of that.
var statements = map[string]func(ctx context.Context, tx pgx.Tx, j *journal){
	"exec": func(ctx context.Context, tx pgx.Tx, j *journal) {
		tag, err := tx.Exec(ctx, "INSERT INTO numbers SELECT generate_series(1, $1::int)", 5)
		j.failed(tag.String(), err)
	},
	"exec that returns rows": func(ctx context.Context, tx pgx.Tx, j *journal) {
		tag, err := tx.Exec(ctx, "SELECT generate_series(1, $1::int)", 5)
		j.failed(tag.String(), err)
	},
	"exec without values": func(ctx context.Context, tx pgx.Tx, j *journal) {
		tag, err := tx.Exec(ctx, "INSERT INTO notes VALUES ('a'); UPDATE notes SET note = 'b'; SELECT 1")
		j.failed(tag.String(), err)
	},
	"exec without values, the second fails": func(ctx context.Context, tx pgx.Tx, j *journal) {
		tag, err := tx.Exec(ctx, "INSERT INTO notes VALUES ('a'); INSERT INTO notes VALUES ('a')")
		j.failed(tag.String(), err)
	},
	"a constraint": func(ctx context.Context, tx pgx.Tx, j *journal) {
		tag, err := tx.Exec(ctx, "INSERT INTO notes SELECT $1 FROM generate_series(1, 2)", "a")
		j.failed(tag.String(), err)
	},
	"bad syntax": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "INSERT INTOO notes VALUES ($1)", "a")
	},
	"no such table": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "SELECT * FROM nowhere WHERE a = $1", 1)
	},
	"no such table, QueryRow": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var n int
		j.failed("row", tx.QueryRow(ctx, "SELECT * FROM nowhere WHERE a = $1", 1).Scan(&n))
	},
	"too few values": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "INSERT INTO numbers VALUES ($1 + $2::int)", 1)
	},
	"too many values": func(ctx context.Context, tx pgx.Tx, j *journal) { j.query(ctx, tx, "SELECT $1::int", 1, 2) },
	"a value that does not fit": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "INSERT INTO numbers VALUES ($1)", int64(1)<<40)
	},
	"a value that cannot be": func(ctx context.Context, tx pgx.Tx, j *journal) {
		_, err := tx.Exec(ctx, "INSERT INTO numbers VALUES ($1)", make(chan int))
		j.say("error %t", err != nil)
	},
	"query": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "SELECT n, 'x' FROM generate_series(1, $1::int) n", 3)
	},
	"query, no values": func(ctx context.Context, tx pgx.Tx, j *journal) { j.query(ctx, tx, "SELECT 7, 'x', NULL") },
	"query, empty":     func(ctx context.Context, tx pgx.Tx, j *journal) { j.query(ctx, tx, "") },
	"query, a comment": func(ctx context.Context, tx pgx.Tx, j *journal) { j.query(ctx, tx, "-- a comment") },
	"query, no rows":   func(ctx context.Context, tx pgx.Tx, j *journal) { j.query(ctx, tx, "SELECT 1 WHERE $1", false) },
	"query, no columns": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "INSERT INTO notes VALUES ($1)", "a")
	},
	"query that fails on its way": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "SELECT 1 / ($1::int - n) FROM generate_series(1, 5) n", 3)
	},
	"query that is left early": func(ctx context.Context, tx pgx.Tx, j *journal) {
		rows, err := tx.Query(ctx, "SELECT n FROM generate_series(1, $1::int) n", 50000)
		j.failed("query", err)
		j.say("%t %t", rows.Next(), rows.Conn() != nil)
		rows.Close()
		rows.Close()
		j.failed(rows.CommandTag().String(), rows.Err())
		j.say("%t", rows.Next())
	},
	"query that cannot be scanned": func(ctx context.Context, tx pgx.Tx, j *journal) {
		rows, err := tx.Query(ctx, "SELECT note FROM (VALUES ('a'), ($1)) n (note)", "b")
		j.failed("query", err)
		j.say("%t", rows.Next())
		var at time.Time
		j.say("%t", rows.Scan(&at) != nil)
		j.say("%t", rows.Err() != nil)
	},
	"query row": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var note string
		j.failed("row", tx.QueryRow(ctx, "SELECT note FROM (VALUES ('a'), ($1)) n (note)", "b").Scan(&note))
		j.say(note)
	},
	"query row, none": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var note string
		err := tx.QueryRow(ctx, "SELECT note FROM notes WHERE note = $1", "b").Scan(&note)
		j.say("%t", err == pgx.ErrNoRows) //nolint:errorlint // as many write it
	},
	"query row that cannot be scanned": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var at time.Time
		j.say("%t", tx.QueryRow(ctx, "SELECT $1 || 'a'", "b").Scan(&at) != nil)
	},
	"query row into the driver's bytes": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var b pgtype.DriverBytes
		j.say("%t", tx.QueryRow(ctx, "SELECT $1 || 'a'", "b").Scan(&b) != nil)
	},
	"query row that fails": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var n int
		j.failed("row", tx.QueryRow(ctx, "SELECT 1 / $1::int", 0).Scan(&n))
	},
	"collected into structs": func(ctx context.Context, tx pgx.Tx, j *journal) {
		type number struct {
			N    int
			Text *string
		}
		rows, _ := tx.Query(ctx, "SELECT n, NULL::text AS text FROM generate_series(1, $1::int) n", 3)
		all, err := pgx.CollectRows(rows, pgx.RowToStructByName[number])
		j.failed(fmt.Sprint(all), err)
	},
	"a mode of its own": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "INSERT INTO notes VALUES ($1); UPDATE notes SET note = 'b'", pgx.QueryExecModeSimpleProtocol, "a")
	},
	"a format of its own": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "SELECT $1::int", pgx.QueryResultFormats{pgx.TextFormatCode}, 5)
	},
	"named arguments": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "SELECT @a::int, @b::text, @a::int", pgx.NamedArgs{"a": 5, "b": "b"})
		j.query(ctx, tx, "SELECT @a::int", pgx.StrictNamedArgs{"b": 1})
	},
	"named arguments that are wrong": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.query(ctx, tx, "SELECT @a::int", pgx.StrictNamedArgs{"b": 1})
	},
	"a prepared statement": func(ctx context.Context, tx pgx.Tx, j *journal) { j.exec(ctx, tx, "prepared", "a") },
	"prepare": func(ctx context.Context, tx pgx.Tx, j *journal) {
		d, err := tx.Prepare(ctx, "mine", "INSERT INTO notes VALUES ($1)")
		j.failed(fmt.Sprint(len(d.ParamOIDs)), err)
		j.exec(ctx, tx, "mine", "a")
		j.failed("deallocate", tx.Conn().Deallocate(ctx, "mine"))
	},
	"batch": func(ctx context.Context, tx pgx.Tx, j *journal) {
		var b pgx.Batch
		b.Queue("INSERT INTO notes VALUES ($1)", "a")
		b.Queue("SELECT COUNT(*) FROM notes").QueryRow(func(row pgx.Row) error {
			var n int
			defer func() { j.say("%d", n) }()
			return row.Scan(&n)
		})
		b.Queue("INSERT INTO notes VALUES ($1)", "a")
		j.failed("batch", tx.SendBatch(ctx, &b).Close())
	},
	"copy": func(ctx context.Context, tx pgx.Tx, j *journal) {
		n, err := tx.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"note"}, pgx.CopyFromRows([][]any{{"copy1"}, {"copy2"}}))
		j.failed(fmt.Sprint(n), err)
	},
	"large objects": func(ctx context.Context, tx pgx.Tx, j *journal) {
		objects := tx.LargeObjects()
		_, err := objects.Create(ctx, 0)
		j.failed("create", err)
		_, err = objects.Open(ctx, 1, pgx.LargeObjectModeRead)
		j.say("%t", err != nil)
	},
	"savepoint": func(ctx context.Context, tx pgx.Tx, j *journal) {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO notes VALUES ($1)", nil)
			return err
		})
		j.failed("nested", err)
		j.exec(ctx, tx, "INSERT INTO notes VALUES ($1)", "a")
	},
	"the connection": func(ctx context.Context, tx pgx.Tx, j *journal) {
		_, err := tx.Conn().Exec(ctx, "INSERT INTO notes VALUES ($1)", "a")
		j.failed("exec", err)
		j.say("%c", tx.Conn().PgConn().TxStatus())
	},
	"a message to listeners": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "SELECT pg_notify($1, 'x')", "channel")
		j.exec(ctx, tx, "LISTEN channel")
		j.exec(ctx, tx, "UNLISTEN channel")
	},
	"set": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "SET LOCAL work_mem = '1MB'")
		j.query(ctx, tx, "SELECT current_setting($1)", "work_mem")
	},
	"set transaction": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
		j.query(ctx, tx, "SELECT current_setting($1)", "transaction_isolation")
	},
	"do": func(ctx context.Context, tx pgx.Tx, j *journal) { j.exec(ctx, tx, "DO $$BEGIN COMMIT; END$$") },
	"call": func(ctx context.Context, tx pgx.Tx, j *journal) {
		j.exec(ctx, tx, "CALL commits($1)", 1)
	},
	"control": func(ctx context.Context, tx pgx.Tx, j *journal) { j.exec(ctx, tx, "COMMIT") },
}

func (j *journal) exec(ctx context.Context, tx pgx.Tx, sql string, args ...any) {
	tag, err := tx.Exec(ctx, sql, args...)
	j.failed(tag.String(), err)
}

// Each statement is run as the first of a transaction and as the second, in each mode, with an error ignored and with
// one returned: pgx, and the transaction, say the same.
func TestTheFirstStatementIsLikeAnyOther(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	for name, m := range modes {
		t.Run(name, func(t *testing.T) {
			s := openSingle(t, url, func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = m.mode
				c.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
					_, err := c.Exec(ctx, `CREATE TABLE IF NOT EXISTS notes (note TEXT PRIMARY KEY);
						CREATE OR REPLACE PROCEDURE commits(n int) LANGUAGE plpgsql AS 'BEGIN COMMIT; END'`)
					if err == nil {
						_, err = c.Prepare(ctx, "prepared", "INSERT INTO notes VALUES ($1)")
					}
					return err
				}
			})
			for what, run := range statements {
				transcript := func(second bool) string {
					var j *journal
					err := s.again(t, func(ctx context.Context, tx pgx.Tx) error {
						j = &journal{}
						if second {
							_, err := tx.Exec(ctx, "SHOW server_version") // takes no snapshot
							require.NoError(t, err)
						}
						require.NoError(t, millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error {
							j.say("%v", o)
							return nil
						}))
						run(ctx, tx, j)
						tag, err := tx.Exec(ctx, "INSERT INTO notes VALUES ($1)", "last")
						j.failed(tag.String(), err)
						return nil
					})
					j.failed("in tx", err)
					j.say("%s", notes(t, s.pool))
					return j.text.String()
				}
				opened := s.pool.Stat().NewConnsCount()
				second := transcript(true)
				require.Equal(t, second, transcript(false), what)
				require.Equal(t, opened, s.pool.Stat().NewConnsCount(), "%s: a connection was lost", what)
			}
		})
	}
}

func TestTheOptionsOfATransactionTravelWithItsFirstStatement(t *testing.T) {
	t.Parallel()
	s := openSingle(t, testenv.Postgres(t), nil)
	for option, want := range map[string]struct {
		o    []millrace.TxOption
		want string
	}{
		"default":         {nil, "read committed off"},
		"repeatable read": {[]millrace.TxOption{millrace.Isolation(sql.LevelRepeatableRead)}, "repeatable read off"},
		"snapshot":        {[]millrace.TxOption{millrace.Isolation(sql.LevelSnapshot)}, "repeatable read off"},
		"uncommitted":     {[]millrace.TxOption{millrace.Isolation(sql.LevelReadUncommitted)}, "read uncommitted off"},
		"committed":       {[]millrace.TxOption{millrace.Isolation(sql.LevelReadCommitted)}, "read committed off"},
		"serializable":    {[]millrace.TxOption{millrace.Isolation(sql.LevelSerializable), millrace.ReadOnly()}, "serializable on"},
		"read only":       {[]millrace.TxOption{millrace.ReadOnly()}, "read committed on"},
	} {
		var got string
		var trips int64
		require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error {
			before := s.trips.Load()
			defer func() { trips = s.trips.Load() - before }()
			return tx.QueryRow(ctx, "SELECT current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only')").Scan(&got)
		}, want.o...), option)
		require.Equal(t, want.want, got, option)
		require.EqualValues(t, 1, trips, option)
	}
}

func TestATransactionThatDoesNothingNeedsNoServer(t *testing.T) {
	t.Parallel()
	s := openSingle(t, testenv.Postgres(t), nil)
	require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error { return s.put(ctx, tx, "a") }))
	before := s.trips.Load()
	var j journal
	for _, want := range []error{nil, errBusiness} {
		require.Equal(t, want, millrace.InTx(t.Context(), s, func(ctx context.Context, _ pgx.Tx) error {
			require.NoError(t, millrace.BeforeCommit(ctx, func(context.Context) error { j.say("before"); return nil }))
			require.NoError(t, millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error { j.say("%v", o); return nil }))
			return want
		}))
	}
	require.PanicsWithValue(t, "now", func() {
		_ = millrace.InTx(t.Context(), s, func(context.Context, pgx.Tx) error { panic("now") })
	})
	require.Equal(t, "before\ncommitted\nrolled back\n", j.text.String())
	require.Equal(t, before, s.trips.Load())
	require.NoError(t, millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
		return millrace.BeforeCommit(ctx, func(ctx context.Context) error { return s.put(ctx, tx, "b") })
	}))
	require.Equal(t, "a b", notes(t, s.pool))
	require.Zero(t, s.pool.Stat().AcquiredConns())
}

// A connection that died in the pool shows with the first statement.
func TestAConnectionThatHasDiedMeanwhileIsAnErrorOfBegin(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"exec": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO notes VALUES ($1)", "a")
			return err
		},
		"query": func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, "SELECT note FROM notes WHERE note = $1", "a")
			require.Equal(t, err, rows.Err())
			require.False(t, rows.Next())
			return err
		},
		"query row": func(ctx context.Context, tx pgx.Tx) error {
			return tx.QueryRow(ctx, "SELECT note FROM notes WHERE note = $1", "a").Scan(new(string))
		},
		"batch": func(ctx context.Context, tx pgx.Tx) error {
			var b pgx.Batch
			b.Queue("INSERT INTO notes VALUES ('a')")
			return tx.SendBatch(ctx, &b).Close()
		},
		"copy": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"note"}, pgx.CopyFromRows([][]any{{"a"}}))
			return err
		},
		"prepare": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Prepare(ctx, "p", "SELECT 1")
			return err
		},
		"savepoint": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Begin(ctx)
			return err
		},
		"the connection": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, "INSERT INTO notes VALUES ('a')")
			return fmt.Errorf("begin: %w", err) // which nobody can say
		},
		"large objects": func(ctx context.Context, tx pgx.Tx) error {
			objects := tx.LargeObjects()
			_, err := objects.Create(ctx, 0)
			return fmt.Errorf("begin: %w", err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openSingle(t, testenv.Postgres(t), nil)
			for i := range 4 {
				require.Equal(t, errBusiness, millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
					if i < 3 && name != "large objects" {
						_ = first(ctx, tx)
					}
					return errBusiness
				}))
			}
			killIdle(t, s)
			var j journal
			err := millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
				require.NoError(t, millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error { j.say("%v", o); return nil }))
				err := first(ctx, tx)
				require.ErrorContains(t, err, "begin: ")
				require.Error(t, s.put(ctx, tx, "second"), "nothing runs outside of the transaction")
				return err
			})
			require.ErrorContains(t, err, "begin: ")
			require.Equal(t, "rolled back\n", j.text.String())
			require.Empty(t, notes(t, s.pool))
			require.Zero(t, s.pool.Stat().AcquiredConns())
		})
	}
}

// killIdle ends the connection that waits in the pool.
func killIdle(t *testing.T, s *single) {
	var pid uint32
	require.NoError(t, s.pool.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid))
	other, err := pgx.ConnectConfig(t.Context(), s.pool.Config().ConnConfig)
	require.NoError(t, err)
	defer func() { _ = other.Close(context.WithoutCancel(t.Context())) }()
	_, err = other.Exec(t.Context(), "SELECT pg_terminate_backend($1)", pid)
	require.NoError(t, err)
	testenv.Eventually(t, 30*time.Second, "the connection has gone", func() bool {
		var n int
		require.NoError(t, other.QueryRow(t.Context(), "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = $1", pid).Scan(&n))
		return n == 0
	})
}

// Nothing of a first statement is there when its round trip is cut, and everybody is told so.
func TestACutFirstRoundTripHasDoneNothing(t *testing.T) {
	t.Parallel()
	server := regexp.MustCompile(`127\.0\.0\.1:\d+`)
	for name, strike := range map[string]func(*proxy.Proxy){
		"request lost": func(p *proxy.Proxy) { p.OnBytes(true, []byte("marked"), p.Cut) },
		"reply lost": func(p *proxy.Proxy) {
			p.OnBytes(true, []byte("marked"), func() { p.BlackholeReplies(true) })
			p.OnBytes(true, []byte("marked"), func() { time.AfterFunc(100*time.Millisecond, func() { p.Cut(); p.BlackholeReplies(false) }) })
		},
		"reply cut short": func(p *proxy.Proxy) { p.OnBytes(false, []byte("BEGIN"), p.Cut) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := testenv.Postgres(t)
			p := proxy.New(t, server.FindString(direct))
			s := openSingle(t, server.ReplaceAllString(direct, p.Addr), nil, millrace.Config{ResolveTimeout: 30 * time.Second})
			require.NoError(t, millrace.Migrate(t.Context(), s.DB, millrace.WitnessMigrations()))
			require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error { return s.put(ctx, tx, "a") }))
			var j journal
			strike(p)
			err := millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
				require.NoError(t, millrace.AfterCompletion(ctx, func(_ context.Context, o millrace.Outcome) error { j.say("%v", o); return nil }))
				return s.put(ctx, tx, "marked")
			})
			require.ErrorContains(t, err, "begin: ")
			var unknown *millrace.UnknownOutcomeError
			require.NotErrorAs(t, err, &unknown)
			require.Equal(t, "rolled back\n", j.text.String())
			require.Equal(t, "a", notes(t, s.pool))
			require.NoError(t, millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error { return s.put(ctx, tx, "b") }))
			require.Equal(t, "a b", notes(t, s.pool))
		})
	}
}

func TestACancelledFirstStatementLeavesNoTransactionBehind(t *testing.T) {
	t.Parallel()
	for name, m := range modes {
		for _, asks := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, asks the server %t", name, asks), func(t *testing.T) {
				t.Parallel()
				s := openSingle(t, testenv.Postgres(t), func(c *pgxpool.Config) {
					c.ConnConfig.DefaultQueryExecMode = m.mode
					if asks {
						c.ConnConfig.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
							return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: time.Minute}
						}
					}
				})
				require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "SELECT pg_sleep($1)", 0)
					return err
				}))
				for _, rows := range []bool{false, true} {
					err := millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
						inner, cancel := context.WithCancel(ctx)
						defer cancel()
						time.AfterFunc(20*time.Millisecond, cancel)
						err := error(nil)
						if rows {
							_, err = pgx.CollectOneRow(first(tx.Query(inner, "SELECT pg_sleep($1)", 60)), pgx.RowTo[any])
						} else {
							_, err = tx.Exec(inner, "SELECT pg_sleep($1)", 60)
						}
						require.Error(t, err)
						if !asks {
							require.ErrorIs(t, err, context.Canceled)
						}
						require.Error(t, s.put(ctx, tx, "second"), "nothing runs outside of the transaction")
						return nil
					})
					require.ErrorIs(t, err, millrace.ErrTxAborted)
				}
				ctx, cancel := context.WithCancel(t.Context())
				err := millrace.InTx(ctx, s, func(ctx context.Context, tx pgx.Tx) error {
					cancel()
					return s.put(ctx, tx, "third")
				})
				require.ErrorIs(t, err, context.Canceled)
				testenv.Eventually(t, 30*time.Second, "connections given back", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
				require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error { return s.put(ctx, tx, "a") }))
				require.Equal(t, "a", notes(t, s.pool))
			})
		}
	}
}

func first(rows pgx.Rows, _ error) pgx.Rows { return rows }

func TestRowsOfTheFirstStatementThatAreLeftOpenAreAnErrorNotAHang(t *testing.T) {
	t.Parallel()
	s := openSingle(t, testenv.Postgres(t), nil)
	for _, leave := range []bool{false, false, true} {
		err := millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, "SELECT generate_series(1, $1::int)", 100000)
			if !leave {
				rows.Close()
			}
			return err
		})
		require.Equal(t, leave, errors.Is(err, millrace.ErrConcurrentUse))
	}
	require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error { return s.put(ctx, tx, "a") }))
	require.Equal(t, "a", notes(t, s.pool))
}

// What a connection remembers of a statement is forgotten when it fails, as pgx itself does.
func TestAChangedTableFailsOnceAndAForgottenStatementNever(t *testing.T) {
	t.Parallel()
	s := openSingle(t, testenv.Postgres(t), nil)
	var trips int64
	read := func(ctx context.Context, tx pgx.Tx) error {
		before := s.trips.Load()
		defer func() { trips = s.trips.Load() - before }()
		rows, _ := tx.Query(ctx, "SELECT * FROM notes WHERE note <> $1", "x")
		_, err := pgx.CollectRows(rows, pgx.RowToMap)
		return err
	}
	require.NoError(t, s.again(t, read))
	_, err := s.pool.Exec(t.Context(), "ALTER TABLE notes ADD COLUMN at timestamptz")
	require.NoError(t, err)
	require.ErrorContains(t, millrace.InTx(t.Context(), s, read), "cached plan must not change result type")
	require.NoError(t, s.again(t, read))

	for range 3 { // what pgx has prepared, and so BEGIN and the statement, go
		require.NoError(t, s.again(t, read))
		require.EqualValues(t, 1, trips)
		c, err := s.pool.Acquire(t.Context())
		require.NoError(t, err)
		require.NoError(t, c.Conn().DeallocateAll(t.Context()))
		c.Release()
		require.NoError(t, millrace.InTx(t.Context(), s, read))
	}
}

// Texts that are made up each time are not prepared, and those that fail leave nothing prepared behind.
func TestAConnectionRemembersLittle(t *testing.T) {
	t.Parallel()
	s := openSingle(t, testenv.Postgres(t), nil)
	for i := range 300 {
		require.NoError(t, millrace.InTx(t.Context(), s, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, fmt.Sprintf("SELECT $1 || 'text %d'", i), "a")
			return err
		}))
	}
	fail := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO notes SELECT $1 FROM generate_series(1, 2)", "a")
		return err
	}
	for range 20 {
		require.Error(t, s.again(t, fail))
	}
	var n int
	require.NoError(t, s.pool.QueryRow(t.Context(), "SELECT COUNT(*) FROM pg_prepared_statements WHERE name LIKE 'millrace_%'").Scan(&n))
	require.LessOrEqual(t, n, 2, "BEGIN, and what has failed last")
}

// tracer remembers what pgx tells of statements.
type tracer struct{ journal }

type tracedKey struct{}

func (tr *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	tr.say("> %s %v", d.SQL, d.Args)
	return context.WithValue(ctx, tracedKey{}, d.SQL)
}

func (tr *tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryEndData) {
	tr.say("< %s: %s %t", ctx.Value(tracedKey{}), d.CommandTag, d.Err != nil)
}

func TestTheFirstStatementIsTraced(t *testing.T) {
	t.Parallel()
	tr := &tracer{}
	s := openSingle(t, testenv.Postgres(t), func(c *pgxpool.Config) { c.ConnConfig.Tracer = tr })
	for way, run := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"exec": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT @a::int", pgx.NamedArgs{"a": 1})
			return err
		},
		"rows": func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, "SELECT @a::int", pgx.NamedArgs{"a": 1})
			rows.Close()
			return err
		},
		"row": func(ctx context.Context, tx pgx.Tx) error {
			return tx.QueryRow(ctx, "SELECT @a::int", pgx.NamedArgs{"a": 1}).Scan(new(int))
		},
	} {
		require.NoError(t, s.again(t, func(ctx context.Context, tx pgx.Tx) error {
			tr.text.Reset()
			defer func() { tr.say("end") }()
			return run(ctx, tx)
		}))
		got, _, _ := strings.Cut(tr.text.String(), "end")
		require.Equal(t, "> SELECT @a::int [map[a:1]]\n< SELECT @a::int: SELECT 1 false\n", got, way)
	}
}
