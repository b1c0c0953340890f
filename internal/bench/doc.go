package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// writeDoc makes docs/benchmarks.md, and its plots in a folder beside it, of a report.
func writeDoc(path string, from io.Reader) error {
	var r report
	if err := json.NewDecoder(from).Decode(&r); err != nil {
		return fmt.Errorf("read the results: %w", err)
	}
	sc, ok := scales[r.Scale]
	if !ok {
		return fmt.Errorf("no such scale: %q", r.Scale)
	}
	for _, c := range allCases(sc) {
		for _, one := range c.contenders {
			if r.find(c.name, one.name) != nil {
				r.cases = append(r.cases, c)
				break
			}
		}
	}
	folder := strings.TrimSuffix(path, ".md")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	var b strings.Builder
	r.head(&b)
	r.barTable(&b)
	for _, c := range r.cases {
		if err := r.section(&b, c, folder); err != nil {
			return err
		}
	}
	b.WriteString(tuning)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

const preface = `# Benchmarks

This page is written by ` + "`make bench`" + `, which anybody can repeat; ` + "`make bench-quick`" + ` prints the bars in some six minutes.

%s. Everything ran on one machine (%s): servers, participants and, where a case has it, a proxy that makes each round trip 2 ms.
So the absolute figures say little about other machines. What counts are the ratios: the participants of a case ran in turn, each in a process of its own,
%d rounds, and ratios are formed within a round. Medians are given, with the lowest and the highest round in brackets. Servers wait for the disk as they do by
default. Payloads are 1 KiB of text with three metadata; messages are persistent and confirmed.

**watermill** is watermill-sql's default schema with components/forwarder and watermill-amqp (ConfirmDelivery) or
watermill-redisstream, all with their defaults; **tuned** reads 1000 rows at once, looks every 10 ms and keeps 10 channels open.
**oagudo/outbox** has no publisher and got millrace's; with its defaults it moves 100 messages in 10 s, so it runs without pause. **limit** is what the
broker takes from a client that sends out of memory with 1000 messages in flight, or what the database gives to one that reads and
deletes. Slow participants were stopped after %v and are rated on what they had moved.

`

func (r *report) head(b *strings.Builder) {
	rounds := 0
	for _, s := range r.Series {
		rounds = max(rounds, len(s.Samples))
	}
	fmt.Fprintf(b, preface, r.Date, r.Machine, rounds, scales[r.Scale].cutoff)
}

func (r *report) barTable(b *strings.Builder) {
	b.WriteString("## Bars\n\nWhat the project wants to reach, and what was measured.\n\n| | bar | measured | |\n|---|---:|---:|---|\n")
	for _, bar := range r.bars() {
		verdict := strings.ToLower(strings.TrimSpace(bar.verdict()))
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", bar.what, bar.want(), bar.got(), verdict)
	}
	b.WriteString("\n")
}

func (r *report) section(b *strings.Builder, c benchCase, folder string) error {
	fmt.Fprintf(b, "## %s\n\n%s\n\n", c.title, c.explain)
	rows := r.table(c)
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "|---|%s\n", strings.Repeat("---:|", len(row)-1))
		}
	}
	b.WriteString("\n")
	if len(c.contenders) < 2 {
		return nil
	}
	main := c.columns[0]
	var names []string
	var values []spread
	for _, one := range c.contenders {
		if v := r.find(c.name, one.name).of(main.figure); !math.IsNaN(v.Median) {
			names, values = append(names, one.name), append(values, v)
		}
	}
	unit := main.head
	if _, rest, ok := strings.Cut(main.head, " "); ok {
		unit = rest
	}
	plot := plotBars(c.title+": "+main.head, unit, main.digits, names, values)
	if plot == "" {
		return nil
	}
	file := strings.NewReplacer("/", "-").Replace(c.name) + ".svg"
	fmt.Fprintf(b, "![%s](%s/%s)\n\n", c.title, filepath.Base(folder), file)
	return os.WriteFile(filepath.Join(folder, file), []byte(plot), 0o644)
}

const tuning = `## How to tune

The defaults are meant to be left alone. What can be changed, and what it does:

- **Config.BatchRows** (500): messages in one call of the publisher, and rows of one read. More gains little; fewer cost round trips.
- **Config.Batches** (4): calls of the publisher at once. Together with BatchRows it says how much is in flight.
- **Config.ReadAheadRows, ReadAheadBytes**: what is held in memory, and so what is sent twice after a crash.
- **Config.PollInterval, MaxPollInterval** (250 ms, 1 s): how late messages of other processes are found, against statements of idle
  forwarders.
- **Concurrency** of a subscriber (10): messages in hand. With Idempotent, each waits for two round trips to the store, so that throughput is at most
  Concurrency in that time.
`
