package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	barWidth      = 40
	frame         = 100 * time.Millisecond
	framesPerLine = 10 // where there is no terminal
)

// view shows a run while it goes on: on a terminal a picture redrawn in place, elsewhere a plain line each second.
type view struct {
	out      io.Writer
	terminal bool
	paint    painter
	orders   int
	path     string
	start    time.Time

	drawn  int // lines of the picture on the screen
	frames int
	lag    history
	peak   int // the highest lag since the last line
}

func newView(out *os.File, cfg config) *view {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &view{
		out: out, terminal: terminal, paint: painter{terminal && os.Getenv("NO_COLOR") == ""},
		orders: cfg.Orders, path: cfg.path(), start: time.Now(),
	}
}

// open shows p until the function that it returns is called; that shows the end and leaves the terminal as it was.
func (v *view) open(p *progress) (closeView func()) {
	if v.terminal {
		fmt.Fprint(v.out, "\x1b[?25l\x1b[?7l") // no cursor, no wrapped lines
	} else {
		fmt.Fprintln(v.out, v.path)
	}
	ctx, stop := context.WithCancel(context.Background())
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		tick := time.NewTicker(frame)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				v.show(p.snapshot(), false)
			case <-ctx.Done():
				v.show(p.snapshot(), true)
				return
			}
		}
	}()
	return func() {
		stop()
		<-closed
		if v.terminal {
			fmt.Fprint(v.out, "\x1b[?25h\x1b[?7h")
		}
	}
}

func (v *view) show(s snapshot, last bool) {
	v.lag.add(s)
	v.peak = max(v.peak, s.lag())
	v.frames++
	switch {
	case v.terminal:
		v.picture(s)
	case v.frames%framesPerLine == 0 || last:
		v.line(s)
	}
}

// line is one plain line.
func (v *view) line(s snapshot) {
	fmt.Fprintf(v.out, "%4.0fs  committed %s  rolled back %s  forwarded %s  billed %s  duplicates dropped %s  lag up to %s  forwarder killed %d×\n",
		time.Since(v.start).Seconds(), thousands(s.Committed), thousands(s.RolledBack), thousands(s.Forwarded),
		thousands(s.billed()), thousands(s.dropped()), thousands(v.peak), s.Kills)
	v.peak = 0
}

// picture redraws the whole frame over the last one.
func (v *view) picture(s snapshot) {
	p := v.paint
	wheel := string([]rune("◐◓◑◒")[s.billed()/8%4]) // turns as long as messages flow
	killed := ""
	if s.Kills > 0 {
		killed = fmt.Sprintf("killed %d×", s.Kills)
		if time.Since(s.LastKill) < 900*time.Millisecond {
			killed = p.red(killed + "  ✗ kill -9")
		}
	}
	lines := []string{
		"",
		fmt.Sprintf("  %s  %-58s %s", p.cyan(wheel+" millrace"), p.dim(v.path), time.Since(v.start).Truncate(time.Second)),
		"",
		fmt.Sprintf("  orders     %s %7s  %s", p.bar(s.Committed, v.orders), thousands(s.Committed), p.dim(thousands(s.RolledBack)+" rolled back")),
		fmt.Sprintf("  forwarded  %s %7s  %s", p.bar(s.Forwarded, v.orders), thousands(s.Forwarded), killed),
		fmt.Sprintf("  billed     %s %7s  %s", p.bar(s.billed(), v.orders), thousands(s.billed()), p.dim(thousands(s.dropped())+" duplicates dropped")),
		fmt.Sprintf("  lag        %s %7s  %s", v.lag.draw(p), thousands(s.lag()), p.dim("not billed yet")),
		"",
	}
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	for _, line := range lines {
		b.WriteString("\x1b[2K" + line + "\n")
	}
	v.drawn = len(lines)
	_, _ = io.WriteString(v.out, b.String())
}

// history is the lag of the last seconds, one value for each column of a bar.
type history struct {
	lags   [barWidth]int
	killed [barWidth]bool
	frames int
	kills  int
}

// add puts three frames into one column: the highest lag counts.
func (h *history) add(s snapshot) {
	if h.frames%3 == 0 {
		copy(h.lags[:], h.lags[1:])
		copy(h.killed[:], h.killed[1:])
		h.lags[barWidth-1], h.killed[barWidth-1] = 0, false
	}
	h.frames++
	h.lags[barWidth-1] = max(h.lags[barWidth-1], s.lag())
	if s.Kills > h.kills {
		h.kills, h.killed[barWidth-1] = s.Kills, true
	}
}

func (h *history) draw(p painter) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	top := 1
	for _, lag := range h.lags {
		top = max(top, lag)
	}
	var b strings.Builder
	for i, lag := range h.lags {
		level := string(levels[lag*(len(levels)-1)/top])
		if h.killed[i] {
			level = p.red(level)
		} else {
			level = p.cyan(level)
		}
		b.WriteString(level)
	}
	return b.String()
}

// painter colours text, or not.
type painter struct{ on bool }

func (p painter) code(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) red(s string) string   { return p.code("31", s) }
func (p painter) green(s string) string { return p.code("32", s) }
func (p painter) cyan(s string) string  { return p.code("36", s) }
func (p painter) dim(s string) string   { return p.code("2", s) }
func (p painter) bold(s string) string  { return p.code("1", s) }

func (p painter) bar(done, total int) string {
	full := min(barWidth, done*barWidth/total)
	return p.green(strings.Repeat("█", full)) + p.dim(strings.Repeat("░", barWidth-full))
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
