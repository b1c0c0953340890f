package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// otherDrain empties an outbox on another database than PostgreSQL.
type otherDrain struct {
	n      int
	kind   servers.Kind // empty: SQLite
	broker string
}

func (d otherDrain) database() string {
	if d.kind == "" {
		return "sqlite"
	}
	return string(d.kind)
}

func (d otherDrain) name() string { return "drain-" + d.database() + "/" + d.broker }

func (d otherDrain) contender(name string) contender {
	return contender{name, func(ctx context.Context, b *bench, round int) (s Sample, err error) {
		at, done, err := d.open(ctx, b)
		if err != nil {
			return Sample{}, err
		}
		defer done()
		p := params{
			Task: "drain-millrace", DB: at, N: d.n, Cutoff: b.scale.patience(name != millraceName),
			Profile: profileFile(b.profiles, d.name(), name, round),
		}
		if name != millraceName {
			p.Task, p.Tuned = "drain-stock", name == tunedName
			err = fillStock(ctx, at, topic, d.n)
		} else {
			err = fillOurs(ctx, at, topic, d.n, 0)
		}
		if err != nil {
			return Sample{}, fmt.Errorf("fill: %w", err)
		}
		var end func() (int, error)
		if p.Broker, end, err = b.place(ctx, d.broker, 0); err != nil {
			return Sample{}, err
		}
		s, err = b.measureChild(ctx, p)
		held, gone := end()
		return s, errors.Join(err, checkHeld(s, held, gone))
	}}
}

// open makes a database for one run.
func (d otherDrain) open(ctx context.Context, b *bench) (database, func(), error) {
	if d.kind == "" {
		folder, err := os.MkdirTemp("", "millrace-bench-")
		return database{URL: filepath.Join(folder, "outbox.db")}, func() { _ = os.RemoveAll(folder) }, err
	}
	a, err := b.fleet.server(ctx, d.kind)
	if err != nil {
		return database{}, nil, err
	}
	db, err := servers.OpenMySQL(a.URL)
	if err != nil {
		return database{}, nil, err
	}
	defer db.Close()
	name := b.fleet.name("db")
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return database{}, nil, err
	}
	dsn, err := servers.MySQLDatabase(a.URL, name)
	return database{d.kind, dsn}, func() {
		db, err := servers.OpenMySQL(a.URL)
		if err == nil {
			_, _ = db.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+name)
			_ = db.Close()
		}
	}, err
}

func otherDrainCases(sc scale) (all []benchCase) {
	if !sc.extras {
		return nil
	}
	for _, kind := range []servers.Kind{servers.MariaDB, ""} {
		for _, to := range []string{classic, streams} {
			d := otherDrain{sc.small, kind, to}
			c := benchCase{
				name: d.name(), title: fmt.Sprintf("Drain of %d messages from %s to %s", d.n, d.database(), to),
				explain: otherExplained, columns: drainColumns, compare: oursAgainst, contenders: []contender{d.contender(millraceName)},
			}
			if kind == servers.MariaDB {
				c.contenders = append(c.contenders, d.contender(stockName), d.contender(tunedName))
			}
			all = append(all, c)
		}
	}
	return all
}
