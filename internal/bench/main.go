// Command bench measures millrace side by side with stock Watermill, another outbox, and the servers
// alone.
//
//	go run . -quick                     what has a bar, in some eight minutes
//	go run . -full -json out.json       everything
//	go run . -sweep                     the settings that one can change, in some seven minutes
//	go run . -case 'drain/20k' -repeat 5
//	go run . -doc ../../docs/benchmarks.md < out.json
//
// Each participant is a process of its own. Servers are started for the benchmark, and ended with it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	if os.Getenv(childVariable) != "" {
		childMain()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "only what has a bar, with shorter runs; the default")
	full := flags.Bool("full", false, "everything")
	sweep := flags.Bool("sweep", false, "only the sweeps of settings, which are part of -full")
	which := flags.String("case", ".", "a regular expression: run these cases only")
	repeat := flags.Int("repeat", 0, "rounds (default 3)")
	file := flags.String("json", "", "write the results to this file")
	doc := flags.String("doc", "", "write the results read from standard input into this file, docs/benchmarks.md; measure nothing")
	profiles := flags.String("profile", "", "write CPU profiles of the participants, and what their statements cost, into this folder")
	list := flags.Bool("list", false, "list the cases and their participants")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *doc != "" {
		return writeDoc(*doc, os.Stdin)
	}
	match, err := regexp.Compile(*which)
	if err != nil {
		return fmt.Errorf("-case: %w", err)
	}
	sc := scales["quick"]
	switch {
	case *quick && *full, *quick && *sweep, *full && *sweep:
		return errors.New("more than one of -quick, -full and -sweep")
	case *sweep:
		sc = scales["sweep"]
	case *full, *which != "." && !*quick:
		sc = scales["full"]
	}
	if *repeat > 0 {
		sc.rounds = *repeat
	}
	if *list {
		printCases(sc)
		return nil
	}
	b := &bench{
		fleet: newFleet(false, *profiles != ""), scale: sc, rounds: sc.rounds, profiles: *profiles, file: *file, log: os.Stderr,
		templates: map[string]string{},
	}
	if *profiles != "" {
		if err := os.MkdirAll(*profiles, 0o755); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, b.fleet.close()) }()
	began := time.Now()
	r := b.report(ctx, match)
	r.Took = time.Since(began).Round(time.Second).String()
	r.print(os.Stdout)
	return errors.Join(r.save(*file), ctx.Err())
}

// save writes the report as JSON, if there is a file for it.
func (r *report) save(file string) error {
	if file == "" {
		return nil
	}
	content, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, '\n'), 0o644)
}

// printCases writes the cases with their participants.
func printCases(sc scale) {
	for _, c := range allCases(sc) {
		var who []string
		for _, one := range c.contenders {
			who = append(who, one.name)
		}
		fmt.Printf("%-50s %s\n", c.name, strings.Join(who, "; "))
	}
}

// allCases are the cases of a scale, the most important ones first.
func allCases(sc scale) []benchCase {
	parts := []func(scale) []benchCase{
		drainCases, latencyCases, producerCases, consumeCases, confirmCases, otherDrainCases, backlogCases, poisonCases, idleCases, sweepCases,
	}
	if sc.name == "sweep" {
		parts = []func(scale) []benchCase{sweepCases}
	}
	var all []benchCase
	for _, part := range parts {
		all = append(all, part(sc)...)
	}
	return all
}
