package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strings"
)

// result is what the two databases say after the run.
type result struct {
	snapshot
	committed int // orders in the shop's database
	billed    int // of these, the ones with a bill

	lost    int // committed, never billed
	doubled int // billed more than once
	ghosts  int // billed, but never committed

	turnover, invoiced int // cents
}

// reconcile compares each order with its bills.
func reconcile(ctx context.Context, shop, billing *sql.DB, s snapshot) (result, error) {
	r := result{snapshot: s}
	orders := map[string]bool{}
	err := amounts(ctx, shop, `SELECT id, amount FROM orders`, func(id string, amount int) {
		orders[id] = true
		r.turnover += amount
	})
	if err != nil {
		return r, err
	}
	bills := map[string]int{}
	err = amounts(ctx, billing, `SELECT order_id, amount FROM bills`, func(id string, amount int) {
		bills[id]++
		r.invoiced += amount
	})
	if err != nil {
		return r, err
	}
	r.committed = len(orders)
	for id := range orders {
		if bills[id] == 0 {
			r.lost++
		} else {
			r.billed++
		}
	}
	for id, n := range bills {
		if n > 1 {
			r.doubled++
		}
		if !orders[id] {
			r.ghosts++
		}
	}
	return r, nil
}

func amounts(ctx context.Context, db *sql.DB, query string, row func(id string, amount int)) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var amount int
		if err := rows.Scan(&id, &amount); err != nil {
			return err
		}
		row(id, amount)
	}
	return rows.Err()
}

// clean reports whether every committed order took effect exactly once, and nothing else did.
func (r result) clean() bool {
	return r.committed > 0 && r.committed == r.Committed && r.committed == r.billed &&
		r.lost == 0 && r.doubled == 0 && r.ghosts == 0 && r.Disorder == 0 && r.turnover == r.invoiced
}

// print writes the table and the verdict.
func (r result) print(out io.Writer, p painter) {
	row := func(mark, label string, n int, note string) {
		fmt.Fprintf(out, "  %s %-28s %9s   %s\n", mark, label, thousands(n), p.dim(note))
	}
	check := func(ok bool, label string, n int, note string) {
		mark := p.green("✓")
		if !ok {
			mark = p.red("✗")
		}
		row(mark, label, n, note)
	}
	rule := p.dim("  " + strings.Repeat("─", 74))

	fmt.Fprintf(out, "\n%s\n", rule)
	row(" ", "orders rolled back", r.RolledBack, "after they were published")
	row(" ", "forwarder killed (kill -9)", r.Kills, "in the middle of its work")
	row(" ", "messages that came again", r.Copies, fmt.Sprintf("%s sent twice on purpose, %s after a kill", thousands(r.Injected), thousands(r.Copies-r.Injected)))
	row(" ", "duplicates dropped", r.dropped(), "by middleware.Idempotent, in two processes")
	fmt.Fprintln(out, rule)
	check(r.committed == r.Committed, "orders committed", r.committed, money(r.turnover))
	check(r.billed == r.committed && r.invoiced == r.turnover, "orders billed", r.billed, money(r.invoiced))
	check(r.lost == 0, "lost", r.lost, "committed, but never billed")
	check(r.doubled == 0, "doubled", r.doubled, "billed more than once")
	check(r.ghosts == 0, "ghosts", r.ghosts, "billed, but rolled back")
	check(r.Disorder == 0, "out of order", r.Disorder, "overtook an earlier order of the same customer")
	fmt.Fprintln(out, rule)
	if r.clean() {
		fmt.Fprintf(out, "  %s\n\n", p.green(p.bold(fmt.Sprintf("Each of the %s committed orders was billed exactly once, and nothing else was.", thousands(r.committed)))))
		return
	}
	fmt.Fprintf(out, "  %s\n\n", p.red(p.bold("The books do not balance: the rows marked ✗ say where.")))
}

func money(cents int) string {
	return fmt.Sprintf("%s.%02d", thousands(cents/100), cents%100)
}
