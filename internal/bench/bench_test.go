package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		childMain()
		return
	}
	os.Exit(m.Run())
}

// some are cases in which, together, everything is used.
var some = regexp.MustCompile(`^(drain/300/(rabbitmq-classic|redis)|drain-keys/300/rabbitmq-quorum/2ms|` +
	`latency/200/rabbitmq-classic|latency/200/redis/foreign-tx|producer/(pgx/8-writers/2ms|sql/8-writers)|` +
	`consume/(rabbitmq-classic/2ms|redis)|confirm/(rabbitmq-classic/inbox-pgx/2ms|redis/remembered)|` +
	`drain-(mariadb|sqlite)/redis|backlog/2k|latency/200/rabbitmq-classic/poison|idle|` +
	`sweep/(replicas/rabbitmq-classic|debounce/(latency-1000|producer)))$`)

func TestCasesRunWithEachOfTheirParticipants(t *testing.T) {
	b := &bench{
		fleet: newFleet(true, false), scale: scales["smoke"], rounds: 1,
		log: testLog{t}, templates: map[string]string{},
	}
	t.Cleanup(func() {
		// Not the test's context: that has ended.
		for _, name := range b.templates {
			if err := b.fleet.drop(context.Background(), name); err != nil {
				t.Log(err)
			}
		}
		if err := b.fleet.close(); err != nil {
			t.Error(err)
		}
	})
	r := &report{Scale: "smoke"}
	for _, c := range allCases(b.scale) {
		if os.Getenv("MILLRACE_TEST_FULL") == "" && !some.MatchString(c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			r.cases = append(r.cases, c)
			for _, s := range b.runCase(t.Context(), c) {
				r.Series = append(r.Series, s)
				for _, sample := range s.Samples {
					switch foreign := strings.HasPrefix(s.Participant, "watermill"); {
					case sample.Err != "" && foreign:
						// With the race detector, the races of others end their process.
						t.Logf("%s: %s", s.Participant, sample.Err)
					case sample.Err != "":
						t.Errorf("%s: %s", s.Participant, sample.Err)
					case sample.Moved == 0 && !foreign:
						t.Errorf("%s moved nothing", s.Participant)
					}
				}
			}
		})
	}
	var out strings.Builder
	r.print(&out)
	content, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	// Into a copy of the page itself, so that its marks are looked at too.
	page, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "benchmarks.md")
	if kept := os.Getenv("MILLRACE_BENCH_DOC"); kept != "" {
		path = kept
	}
	if err := os.WriteFile(path, page, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeDoc(path, bytes.NewReader(content)); err != nil {
		t.Error(err)
	}
	if len(r.bars()) == 0 {
		t.Error("no bar was compared")
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

func TestARatioComparesTheRunsOfOneRound(t *testing.T) {
	run := func(rates ...float64) *Series {
		s := &Series{}
		for _, r := range rates {
			s.Samples = append(s.Samples, Sample{Moved: int(r), Seconds: 1})
		}
		return s
	}
	got := ratio(run(10, 40, 90), run(5, 10, 30), rate)
	if want := (spread{Median: 3, Low: 2, High: 4}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPercentilesAreThoseOfTheSortedTimes(t *testing.T) {
	var all []time.Duration
	for i := 1000; i > 0; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	var s Sample
	s.percentiles(all)
	if s.P50 != 500 || s.P99 != 990 || s.P999 != 999 {
		t.Errorf("got %v, %v, %v", s.P50, s.P99, s.P999)
	}
}

func TestNumbersAreWrittenInThousands(t *testing.T) {
	for want, got := range map[string]string{
		"1 234 567": number(1234567, 0), "999": number(999, 0), "-1 000.5": number(-1000.5, 1), "12.34": number(12.34, 2),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestWhatIsBetweenTheMarksOfAPageIsReplaced(t *testing.T) {
	page := "by hand\n<!-- bench: bars -->\nold\n<!-- end of bars -->\nby hand too\n"
	got, err := between(page, "bars", "\nnew\n\n")
	if want := strings.Replace(page, "old", "new", 1); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, broken := range []string{"", "<!-- bench: bars -->", "<!-- end of bars --><!-- bench: bars -->"} {
		if _, err := between(broken, "bars", "new"); err == nil {
			t.Errorf("%q was taken for a page with both marks", broken)
		}
	}
}

func TestTheWayOfAShopTellsItsPauseBetweenNotes(t *testing.T) {
	for _, ms := range debounce.values {
		if got, ok := pauseOf(debounced(ms)); !ok || got != time.Duration(ms)*time.Millisecond {
			t.Errorf("%d ms: got %v, %v", ms, got, ok)
		}
	}
	for _, way := range []string{withNotify, withOurs, rowOnly} {
		if _, ok := pauseOf(way); ok {
			t.Errorf("%q has a pause", way)
		}
	}
}

func TestEachKnobIsComparedWithItsDefault(t *testing.T) {
	for _, c := range sweepCases(scales["sweep"]) {
		if c.compare == nil {
			continue
		}
		names := map[string]int{}
		for _, one := range c.contenders {
			names[one.name]++
		}
		if names[c.compare.base] != 1 {
			t.Errorf("%s has %d participants called %q", c.name, names[c.compare.base], c.compare.base)
		}
		if len(names) != len(c.contenders) {
			t.Errorf("%s has two participants of one name: %v", c.name, names)
		}
	}
}
