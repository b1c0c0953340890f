package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// saveStatements writes what PostgreSQL did since the last call beside the CPU profile of a run.
func (b *bench) saveStatements(ctx context.Context, p params) {
	if p.Profile == "" || p.DB.Kind != servers.Postgres {
		return
	}
	text, err := b.topStatements(ctx)
	if err != nil {
		text = []byte(err.Error())
	}
	if err := os.WriteFile(strings.TrimSuffix(p.Profile, ".pprof")+".statements.txt", text, 0o644); err != nil {
		fmt.Fprintln(b.log, err)
	}
}

func (b *bench) topStatements(ctx context.Context) ([]byte, error) {
	a, err := b.fleet.server(ctx, servers.Postgres)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, a.URL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `SELECT calls, rows, plans, total_plan_time, total_exec_time, shared_blks_hit + shared_blks_read, query
		FROM pg_stat_statements WHERE query NOT LIKE 'CREATE %' ORDER BY total_plan_time + total_exec_time DESC LIMIT 15`)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintln(&out, "calls, rows, times planned, ms of planning, ms of executing, blocks, statement")
	var calls, n, plans, blocks int64
	var planning, executing float64
	var query string
	_, err = pgx.ForEachRow(rows, []any{&calls, &n, &plans, &planning, &executing, &blocks, &query}, func() error {
		_, err := fmt.Fprintf(&out, "%8d %8d %8d %10.1f %10.1f %9d  %s\n", calls, n, plans, planning, executing, blocks, strings.Join(strings.Fields(query), " "))
		return err
	})
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, "SELECT pg_stat_statements_reset()")
	return out.Bytes(), err
}
