package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/internal/migrate"
	"github.com/millrace-go/millrace/internal/txn"
)

// Check implements Store. It joins the answers, so that all that is wrong is said at once. What is
// unwise only is logged. It asks on two connections, both of which a forwarder then has.
func (s *sqlStore) Check(ctx context.Context) error {
	ctx = txn.Once(ctx)
	d, err := s.dialect(ctx)
	if err != nil {
		return err
	}
	kind, err := s.pool.Dialect(ctx)
	if err != nil {
		return explain("check", err)
	}
	beside := make(chan error, 1)
	go func() {
		beside <- errors.Join(s.checkIndexes(ctx, kind), s.checkPrivileges(ctx, kind), d.check(ctx))
	}()
	if err := s.checkSchema(ctx, kind); err != nil {
		<-beside // without the tables, most of it is about that
		return err
	}
	return <-beside
}

// checkSchema looks whether the tables are there, and those that this package works with.
func (s *sqlStore) checkSchema(ctx context.Context, kind txn.Dialect) error {
	if err := s.checkVersion(ctx, kind); err != nil {
		return err
	}
	return s.checkTables(ctx, kind)
}

// checkVersion compares the schema with the one that this package works with. A newer one is the
// sign of a newer replica beside this one, and is all right: a change that an older one cannot live
// with would go into tables of another name.
func (s *sqlStore) checkVersion(ctx context.Context, kind txn.Dialect) error {
	want, err := version(kind)
	if err != nil {
		return explain("check", err)
	}
	have, err := migrate.Version(ctx, s.pool, part(s.prefix))
	if err != nil {
		return s.wrap("check the schema version", err)
	}
	if have < want {
		what := fmt.Sprintf("the schema of %s has version %d, want %d", part(s.prefix), have, want)
		if have == 0 {
			what = fmt.Sprintf("the tables %s* have not been created", s.prefix)
		}
		return &setupError{what: what, remedy: "call millrace.Migrate(ctx, db, outbox.Migrations()), or apply the SQL files of outbox/migrations/" + string(kind)}
	}
	return nil
}

// checkTables looks at each table, and for the lanes without which rows are never read.
func (s *sqlStore) checkTables(ctx context.Context, kind txn.Dialect) error {
	lanes := 0
	var looks strings.Builder
	for _, table := range tablesOf(kind) {
		looks.WriteString(` + (SELECT count(*) FROM ` + table + ` WHERE 1 = 0)`)
	}
	err := s.once(ctx, "check the tables", `SELECT (SELECT count(*) FROM millrace_lanes WHERE lane BETWEEN 0 AND 63)`+looks.String(), nil,
		func(row txn.Scanner) error { return row.Scan(&lanes) })
	if err != nil {
		return err
	}
	if lanes != Lanes {
		return &setupError{
			what:   fmt.Sprintf("%slanes has %d of its %d rows", s.prefix, lanes, Lanes),
			remedy: "insert the missing ones: lanes 0 to 63, with the defaults of the other columns",
		}
	}
	return nil
}

// setting is one answer of a database about itself, and what is wrong with it.
type setting struct {
	query  string
	ok     func(value string) bool
	what   string
	remedy string
}

// checkSettings joins what is wrong with the settings. Advice that is not followed can be worked with, and is logged; that it
// cannot be asked for is no reason not to start.
func (s *sqlStore) checkSettings(ctx context.Context, settings, advice []setting) error {
	values, errs := s.ask(ctx, slices.Concat(settings, advice))
	for i, c := range settings {
		if errs[i] == nil && !c.ok(values[i]) {
			errs[i] = &setupError{what: fmt.Sprintf("%s is %q", c.what, values[i]), remedy: c.remedy}
		}
	}
	for i, c := range advice {
		switch value, err := values[len(settings)+i], errs[len(settings)+i]; {
		case err != nil:
			s.log.DebugContext(ctx, "outbox setting not known", "setting", c.what, "error", err)
		case !c.ok(value):
			s.log.WarnContext(ctx, "outbox setting", "setting", c.what, "value", value, "remedy", c.remedy)
		}
	}
	return errors.Join(errs[:len(settings)]...)
}

// ask asks for all settings in one statement, for the sake of a server that is far away. Where that fails, because one
// of them cannot be asked for, or because they are what SQLite takes for no expression, it asks for each.
func (s *sqlStore) ask(ctx context.Context, settings []setting) (values []string, errs []error) {
	values, errs = make([]string, len(settings)), make([]error, len(settings))
	columns, places := make([]string, len(settings)), make([]any, len(settings))
	for i, c := range settings {
		columns[i], places[i] = "("+c.query+")", &values[i]
	}
	all := "SELECT " + strings.Join(columns, ", ")
	if s.once(ctx, "check", all, nil, func(row txn.Scanner) error { return row.Scan(places...) }) == nil {
		return values, errs
	}
	for i, c := range settings {
		errs[i] = s.once(ctx, "check "+c.what, c.query, nil, func(row txn.Scanner) error { return row.Scan(places[i]) })
	}
	return values, errs
}

const lostCommits = "; else a crash of the server makes it forget transactions whose messages were sent"

func is(want string) func(string) bool { return func(value string) bool { return value == want } }

func isNot(bad string) func(string) bool { return func(value string) bool { return value != bad } }

func (p *postgres) check(ctx context.Context) error {
	const role = "ALTER ROLE ... SET "
	return p.checkSettings(ctx, []setting{
		{`SELECT CASE WHEN current_setting('server_version_num')::int >= 140000 THEN 'ok' ELSE current_setting('server_version') END`, is("ok"),
			"the version of PostgreSQL", "upgrade it to 14 or newer"},
		{`SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END`, is("primary"),
			"the server", "connect the forwarder to the primary (target_session_attrs=read-write)"},
		{`SELECT current_setting('default_transaction_read_only')`, is("off"),
			"default_transaction_read_only", role + "default_transaction_read_only = off for the user of the outbox"},
		{`SELECT current_setting('default_transaction_isolation')`, is("read committed"),
			"default_transaction_isolation", role + "default_transaction_isolation = 'read committed' for the user of the outbox; its own transactions may choose another"},
		{`SELECT CASE WHEN current_setting('statement_timeout')::interval BETWEEN '1 ms' AND '4999 ms' THEN current_setting('statement_timeout') ELSE 'ok' END`, is("ok"),
			"statement_timeout", role + "statement_timeout = 0 (or 5 s and more) for the user of the outbox"},
		{`SELECT coalesce((SELECT s.seqcache::text FROM pg_sequence s
			WHERE s.seqrelid = pg_get_serial_sequence('millrace_outbox', 'pos')::regclass), 'missing')`, is("1"),
			"the CACHE of the sequence of " + p.prefix + "outbox.pos", "ALTER TABLE " + p.prefix + "outbox ALTER COLUMN pos SET CACHE 1: a cache breaks the order of keys"},
	}, []setting{
		{`SELECT current_setting('synchronous_commit')`, isNot("off"),
			"synchronous_commit", role + "synchronous_commit = on for every user who publishes" + lostCommits},
		{fmt.Sprintf(`SELECT count(*) FROM pg_prepared_xacts
			WHERE database = current_database() AND prepared < clock_timestamp() - %d * interval '1 microsecond'`, micros(p.preparedAge)), is("0"),
			"transactions prepared more than " + p.preparedAge.String() + " ago", "COMMIT PREPARED or ROLLBACK PREPARED what nobody will end (pg_prepared_xacts): " +
				"their messages wait, deleted rows cannot be vacuumed, and reads walk over them"},
		{`SELECT has_sequence_privilege(pg_get_serial_sequence('millrace_outbox', 'pos'), 'SELECT,USAGE')::text`, is("true"),
			"the privilege to see the last position", "GRANT SELECT ON ALL SEQUENCES IN SCHEMA ... TO the user of the outbox; " +
				"else reads walk over deleted rows that cannot be vacuumed"},
	})
}

func (d *sqlite) check(ctx context.Context) error {
	return d.checkSettings(ctx, []setting{
		{`PRAGMA journal_mode`, is("wal"), "journal_mode", "open the database with journal_mode WAL (modernc.org/sqlite: ?_pragma=journal_mode(wal))"},
	}, []setting{
		{`PRAGMA synchronous`, isNot("0"), "synchronous",
			"take synchronous(off) away from what opens the database" + lostCommits},
		{`PRAGMA locking_mode`, is("normal"), "locking_mode",
			"take locking_mode(exclusive) away, if another process is to publish or to forward"},
	})
}

func (d *mysql) check(ctx context.Context) error {
	return d.checkSettings(ctx, []setting{
		{`SELECT CASE WHEN VERSION() LIKE '%MariaDB%' THEN
				CAST(SUBSTRING_INDEX(VERSION(), '.', 1) AS UNSIGNED) * 100 + CAST(SUBSTRING_INDEX(SUBSTRING_INDEX(VERSION(), '.', 2), '.', -1) AS UNSIGNED) >= 1006
			ELSE CAST(SUBSTRING_INDEX(VERSION(), '.', 1) AS UNSIGNED) >= 8 END`, is("1"),
			"that the server is MySQL 8.0, MariaDB 10.6 or newer", "upgrade it: SKIP LOCKED and JSON_TABLE are needed"},
		{`SELECT CAST(count(*) AS CHAR) FROM information_schema.tables
			WHERE table_schema = DATABASE() AND table_name LIKE 'millrace\\_%' AND engine <> 'InnoDB'`, is("0"),
			"the number of tables of another engine than InnoDB", "ALTER TABLE ... ENGINE = InnoDB for each of them"},
		{`SELECT CAST(@@autocommit + 0 AS CHAR)`, is("1"), "autocommit", "take autocommit=0 out of the DSN and the server's defaults"},
		{`SELECT CAST(@@read_only + 0 AS CHAR)`, isNot("1"), "read_only", "connect the forwarder to the primary"},
		{`SELECT CAST(@@auto_increment_increment AS CHAR)`, is("1"), "auto_increment_increment",
			"set it to 1: positions from several primaries do not keep the order of keys"},
	}, []setting{
		{`SELECT CAST(@@innodb_flush_log_at_trx_commit AS CHAR)`, is("1"),
			"innodb_flush_log_at_trx_commit", "set it to 1" + lostCommits},
	})
}
