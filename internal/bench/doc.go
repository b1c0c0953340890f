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

// writeDoc writes a report into docs/benchmarks.md, and its plots into a folder beside it. What is there by hand stays: only
// the sections between marks are replaced, and of those only what the report has something for.
func writeDoc(path string, from io.Reader) error {
	var r report
	if err := json.NewDecoder(from).Decode(&r); err != nil {
		return fmt.Errorf("read the results: %w", err)
	}
	sc, ok := scales[r.Scale]
	if !ok {
		return fmt.Errorf("no such scale: %q", r.Scale)
	}
	var cases, sweeps []benchCase
	for _, c := range allCases(sc) {
		switch {
		case !r.ran(c):
		case c.swept != nil:
			sweeps = append(sweeps, c)
		default:
			cases = append(cases, c)
		}
	}
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	folder := strings.TrimSuffix(path, ".md")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	text := string(page)
	if len(cases) > 0 {
		if text, err = r.measured(text, cases, folder); err != nil {
			return err
		}
	}
	if len(sweeps) > 0 {
		var b strings.Builder
		if err := r.sweepSection(&b, sweeps, folder); err != nil {
			return err
		}
		if text, err = between(text, "sweep", b.String()); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// ran reports whether there is a run of the case.
func (r *report) ran(c benchCase) bool {
	for _, one := range c.contenders {
		if r.find(c.name, one.name) != nil {
			return true
		}
	}
	return false
}

// measured writes what is not swept.
func (r *report) measured(text string, cases []benchCase, folder string) (string, error) {
	var bars, all strings.Builder
	r.barTable(&bars)
	said := ""
	for _, c := range cases {
		explain := c.explain
		if explain == said {
			explain = "" // once for cases that follow each other
		}
		said = c.explain
		if err := r.section(&all, c, explain, folder); err != nil {
			return "", err
		}
	}
	for _, part := range []struct{ mark, content string }{{"run", r.head()}, {"bars", bars.String()}, {"cases", all.String()}} {
		var err error
		if text, err = between(text, part.mark, part.content); err != nil {
			return "", err
		}
	}
	return text, nil
}

// between replaces what is between two marks, which are comments of Markdown.
func between(text, mark, content string) (string, error) {
	begin, end := "<!-- bench: "+mark+" -->", "<!-- end of "+mark+" -->"
	before, rest, ok := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("the page has no %s and %s behind it", begin, end)
	}
	return before + begin + "\n" + strings.TrimSpace(content) + "\n" + end + after, nil
}

const preface = `Measured %s, %s, on one machine: %s. Servers, participants and, where a case has it, a proxy that makes each round trip 2 ms, share it. The
participants of a case ran in turn, each in a process of its own, %s; ratios are formed within a round. Medians are given, with the lowest and the highest round in
brackets. Payloads are 1 KiB of text with three metadata, without keys where nothing else is said; messages are persistent and confirmed. Slow participants were stopped after %v and are rated on
what they had moved.
`

func (r *report) head() string {
	which := map[bool]string{true: "everything (`make bench`)", false: "what has a bar (`make bench-quick`)"}[scales[r.Scale].extras]
	return fmt.Sprintf(preface, r.Date, which, r.Machine, r.rounds(), scales[r.Scale].cutoff)
}

// rounds says how many there were: of nearly all cases, and of those that have more.
func (r *report) rounds() string {
	most, usual, cases := 0, 0, map[int]int{}
	for _, s := range r.Series {
		n := len(s.Samples)
		cases[n]++
		most = max(most, n)
		if cases[n] > cases[usual] {
			usual = n
		}
	}
	text := fmt.Sprintf("up to %d rounds", usual)
	if most > usual {
		text += fmt.Sprintf(" (%d where a run takes a fraction of a second)", most)
	}
	return text
}

func (r *report) barTable(b *strings.Builder) {
	b.WriteString("| case | bar | measured | met |\n|---|---:|---:|---|\n")
	for _, bar := range r.bars() {
		verdict := map[string]string{"met": "yes", "MISSED": "**no**"}[strings.TrimSpace(bar.verdict())]
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", bar.what, bar.want(), bar.got(), verdict)
	}
}

func (r *report) section(b *strings.Builder, c benchCase, explain, folder string) error {
	fmt.Fprintf(b, "### %s\n\n", c.title)
	if explain != "" {
		fmt.Fprintf(b, "%s\n\n", explain)
	}
	writeTable(b, r.table(c))
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
	return savePlot(b, plot, c.title, folder, c.name)
}

// writeTable writes rows, the first of which is the head.
func writeTable(b *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "|---|%s\n", strings.Repeat("---:|", len(row)-1))
		}
	}
	b.WriteString("\n")
}

// savePlot writes a plot beside the page, and a reference to it.
func savePlot(b *strings.Builder, plot, title, folder, name string) error {
	if plot == "" {
		return nil
	}
	file := strings.NewReplacer("/", "-").Replace(name) + ".svg"
	fmt.Fprintf(b, "![%s](%s/%s)\n\n", title, filepath.Base(folder), file)
	return os.WriteFile(filepath.Join(folder, file), []byte(plot), 0o644)
}
