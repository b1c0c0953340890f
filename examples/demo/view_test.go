package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestPictureIsRedrawnInPlace(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &view{out: &out, terminal: true, orders: 10, path: config{}.path(), start: time.Now()}
	v.show(snapshot{Committed: 5}, false)
	height := strings.Count(out.String(), "\n")
	out.Reset()
	v.show(snapshot{Committed: 10, RolledBack: 1, Kills: 2, LastKill: time.Now()}, false)

	up, picture, _ := strings.Cut(out.String(), "A")
	require.Equal(t, "\x1b["+thousands(height), up)
	require.Contains(t, picture, "killed 2×")
	require.NotContains(t, picture, "\x1b[3", "no colour was asked for")
	for line := range strings.Lines(picture) {
		require.Less(t, utf8.RuneCountInString(strings.TrimPrefix(line, "\x1b[2K")), 100, line)
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		require.Equal(t, want, thousands(n))
	}
}
