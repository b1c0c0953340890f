// Command styles sends the same orders in the four styles that people use, has the same things go wrong with
// each, and prints what was lost, invented and doubled.
//
//	go run ./styles
//
// Where to look: styles.go has the four ways to place an order, a few lines each; faults.go what goes
// wrong; broker.go the broker, which is sometimes away and sometimes loses its answer.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
)

func main() {
	orders := flag.Int("orders", 200, "orders in each style")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	results, err := compare(ctx, *orders)
	if err != nil {
		fmt.Fprintln(os.Stderr, "styles:", err)
		os.Exit(1)
	}
	report(os.Stdout, *orders, results)
}

// result is what became of the orders of one style.
type result struct {
	style     string
	refused   int // orders that failed because the broker did
	committed int
	lost      int // committed, and never sent
	ghosts    int // sent, and never committed
	doubled   int // sent more than once
}

// compare runs the styles one after the other.
func compare(ctx context.Context, orders int) ([]result, error) {
	var results []result
	for _, s := range styles {
		r, err := run(ctx, s, orders)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

func report(w io.Writer, orders int, results []result) {
	fmt.Fprintf(w, "%d orders in each style. Of every ten, one is taken back, one meets a crash before COMMIT and one after it,\n", orders)
	fmt.Fprintf(w, "one finds the broker away, and of one the broker's answer is lost.\n\n")
	fmt.Fprintf(w, "%-32s %10s %11s %6s %7s %8s\n", "style", "committed", "turned away", "lost", "ghosts", "doubled")
	for _, r := range results {
		fmt.Fprintf(w, "%-32s %10d %11d %6d %7d %8d\n", r.style, r.committed, r.refused, r.lost, r.ghosts, r.doubled)
	}
	fmt.Fprint(w, `
turned away  an order failed because the broker did
lost         committed, and never sent: nobody will ever bill it
ghosts       sent, and never committed: somebody will bill it
doubled      sent more than once: a consumer that remembers ids makes up for it
             (middleware.Idempotent or Transactional), and for nothing else here
`)
}
