package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report is everything that was measured.
type report struct {
	Date    string    `json:"date"`
	Scale   string    `json:"scale"`
	Machine string    `json:"machine"`
	Took    string    `json:"took"`
	Series  []*Series `json:"series"`

	cases []benchCase
}

func (b *bench) report(ctx context.Context, match *regexp.Regexp) *report {
	r := &report{Date: time.Now().UTC().Format(time.DateOnly), Scale: b.scale.name, Machine: machine()}
	for _, c := range allCases(b.scale) {
		if !match.MatchString(c.name) || ctx.Err() != nil {
			continue
		}
		r.cases = append(r.cases, c)
		r.Series = append(r.Series, b.runCase(ctx, c)...)
		if err := r.save(b.file); err != nil { // an hour of work is not lost with the last case
			fmt.Fprintln(b.log, err)
		}
	}
	return r
}

// find returns the runs of a participant, nil if there are none.
func (r *report) find(name, participant string) *Series {
	for _, s := range r.Series {
		if s.Case == name && s.Participant == participant {
			return s
		}
	}
	return nil
}

// print writes the tables and the bars as text.
func (r *report) print(w io.Writer) {
	for _, c := range r.cases {
		fmt.Fprintf(w, "\n%s (%s)\n", c.title, c.name)
		tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
		for _, row := range r.table(c) {
			fmt.Fprintln(tw, strings.Join(row, "\t")+"\t")
		}
		_ = tw.Flush()
	}
	bars := r.bars()
	fmt.Fprintf(w, "\nBars: median of the rounds (lowest … highest)\n")
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	met := 0
	for _, b := range bars {
		if b.met() {
			met++
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\n", b.verdict(), b.what, b.want(), b.got())
	}
	_ = tw.Flush()
	fmt.Fprintf(w, "%d of %d bars met, in %s on %s\n", met, len(bars), r.Took, r.Machine)
}

// table is a case with its heads: one row for each participant, and how it compares with the others.
func (r *report) table(c benchCase) [][]string {
	columns := []column{}
	for _, col := range c.columns {
		for _, one := range c.contenders {
			if !math.IsNaN(r.find(c.name, one.name).of(col.figure).Median) {
				columns = append(columns, col)
				break
			}
		}
	}
	head := []string{""}
	for i, col := range columns {
		head = append(head, col.head)
		if i == 0 && c.compare != nil {
			head = append(head, c.compare.head)
		}
	}
	rows := [][]string{head}
	for _, one := range c.contenders {
		s := r.find(c.name, one.name)
		row := []string{one.name}
		for i, col := range columns {
			row = append(row, cell(s.of(col.figure), col.digits, i == 0))
			if i == 0 && c.compare != nil {
				row = append(row, c.compare.cell(r, c, one.name))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// cell is how a participant compares, or nothing for the one that all are compared with.
func (c comparison) cell(r *report, of benchCase, who string) string {
	if who == c.base {
		return ""
	}
	base, other, times, digits, unit := r.find(of.name, c.base), r.find(of.name, who), 100.0, 0, " %"
	if c.inverse {
		base, other, times, digits, unit = other, base, 1, 1, "×"
	}
	value := ratio(other, base, of.columns[0].figure).times(times)
	if value.Median < 2 && c.inverse {
		digits = 2
	}
	text := cell(value, digits, true)
	if text == "" {
		return ""
	}
	if number, around, ok := strings.Cut(text, " ("); ok {
		return number + unit + " (" + around
	}
	return text + unit
}

// cell is a median, with its spread if it is the main figure.
func cell(s spread, digits int, withSpread bool) string {
	if math.IsNaN(s.Median) {
		return ""
	}
	text := number(s.Median, digits)
	if withSpread && s.Low != s.High {
		text += fmt.Sprintf(" (%s … %s)", number(s.Low, digits), number(s.High, digits))
	}
	return text
}

// number writes large numbers with spaces between the thousands.
func number(v float64, digits int) string {
	text := fmt.Sprintf("%.*f", digits, v)
	whole, rest, _ := strings.Cut(text, ".")
	var out []byte
	for i, c := range []byte(whole) {
		if i > 0 && (len(whole)-i)%3 == 0 && c != '-' && whole[i-1] != '-' {
			out = append(out, ' ')
		}
		out = append(out, c)
	}
	if digits > 0 {
		return string(out) + "." + rest
	}
	return string(out)
}

// machine is where it ran, in general terms.
func machine() string {
	text := fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return text
	}
	var kb float64
	if _, err := fmt.Sscanf(string(info), "MemTotal: %f kB", &kb); err == nil {
		text += fmt.Sprintf(", %.0f GB", kb/1e6)
	}
	return text
}
