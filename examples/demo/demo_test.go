package main

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// asProgram makes the test binary be the demo. The demo's children inherit it.
const asProgram = "MILLRACE_DEMO_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	testenv.Main(m)
}

// run is one started demo.
type run struct {
	*exec.Cmd
	temp   string // its temporary folder
	output bytes.Buffer
}

func newRun(t *testing.T, args ...string) *run {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	r := &run{temp: t.TempDir()}
	r.Cmd = exec.CommandContext(t.Context(), self, args...)
	r.Env = append(os.Environ(), asProgram+"=1", "TMPDIR="+r.temp)
	r.Stdout, r.Stderr = &r.output, &r.output
	return r
}

func TestDemoReconcilesWithNothingButGo(t *testing.T) {
	t.Parallel()
	requireClean(t, newRun(t, "-orders", "300", "-rate", "0", "-kills", "2"))
}

func TestDemoReconcilesOnPostgresAndRabbitMQ(t *testing.T) {
	t.Parallel()
	requireClean(t, newRun(t, "-orders", "300", "-rate", "0", "-kills", "2",
		"-db", testenv.Postgres(t), "-broker", testenv.RabbitMQ(t), "-dedup", testenv.Redis(t)))
}

func TestDemoReconcilesOnPostgresAndRedisStreams(t *testing.T) {
	t.Parallel()
	requireClean(t, newRun(t, "-orders", "300", "-rate", "0", "-kills", "2",
		"-db", testenv.Postgres(t), "-broker", testenv.Redis(t)))
}

// requireClean runs the demo and looks at what a person would look at.
func requireClean(t *testing.T, r *run) {
	t.Helper()
	err := r.Run()
	out := r.output.String()
	require.NoError(t, err, out)
	require.Empty(t, marked(out, "✗"), out)

	rows := strings.Join(marked(out, "✓"), "\n")
	for _, row := range []string{"lost 0", "doubled 0", "ghosts 0", "out of order 0"} {
		require.Contains(t, rows, row, out)
	}
	committed := number(t, out, "orders committed")
	require.Equal(t, 300, committed, out)
	require.Positive(t, number(t, out, "orders rolled back"), out)
	require.Equal(t, committed, number(t, out, "orders billed"), out)
	require.Positive(t, number(t, out, "forwarder killed (kill -9)"), out)
	require.Positive(t, number(t, out, "duplicates dropped"), out)
	require.Equal(t, number(t, out, "messages that came again"), number(t, out, "duplicates dropped"), out)
	require.Contains(t, out, "was billed exactly once, and nothing else was.")
	require.NotContains(t, out, "\x1b", "a plain file gets plain text")

	requireEmpty(t, r.temp)
}

func requireEmpty(t *testing.T, folder string) {
	t.Helper()
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left)
}

func number(t *testing.T, table, label string) int {
	t.Helper()
	found := regexp.MustCompile(regexp.QuoteMeta(label)+` +([\d,]+)`).FindAllStringSubmatch(table, -1)
	require.NotEmpty(t, found, "no row %q in:\n%s", label, table)
	last := found[len(found)-1] // the table is below the progress
	n, err := strconv.Atoi(strings.ReplaceAll(last[1], ",", ""))
	require.NoError(t, err)
	return n
}

func TestCtrlCStopsEveryProcessAndLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRun(t)
	children := r.untilItWorks(t)
	require.NoError(t, r.Process.Signal(os.Interrupt))

	var exit *exec.ExitError
	require.ErrorAs(t, r.Wait(), &exit, r.output.String())
	require.Equal(t, 130, exit.ExitCode(), r.output.String())
	require.Contains(t, r.output.String(), "demo: stopped")
	for _, pid := range children {
		require.False(t, alive(pid), "process %d lives on", pid)
	}
	requireEmpty(t, r.temp)
}

func TestNoProcessOutlivesADemoThatWasKilled(t *testing.T) {
	t.Parallel()
	r := newRun(t)
	children := r.untilItWorks(t)
	require.NoError(t, r.Process.Kill())
	require.Error(t, r.Wait())
	testenv.Eventually(t, time.Minute, "the children to end", func() bool {
		for _, pid := range children {
			if alive(pid) {
				return false
			}
		}
		return true
	})
}

// untilItWorks starts the demo, waits until its three children run, and returns their process ids.
func (r *run) untilItWorks(t *testing.T) (children []int) {
	t.Helper()
	require.NoError(t, r.Start())
	started := regexp.MustCompile(`started as process (\d+)`)
	testenv.Eventually(t, time.Minute, "two billing processes and a forwarder", func() bool {
		logs, _ := filepath.Glob(filepath.Join(r.temp, "*", "demo.log"))
		if len(logs) == 0 {
			return false
		}
		text, err := os.ReadFile(logs[0])
		require.NoError(t, err)
		children = nil
		for _, m := range started.FindAllStringSubmatch(string(text), -1) {
			pid, err := strconv.Atoi(m[1])
			require.NoError(t, err)
			children = append(children, pid)
		}
		return len(children) >= 3
	})
	return children
}

// alive reports whether a process runs. One that has ended and was not collected by its new parent does not.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

func TestProcessThatEndsByItselfEndsTheDemoWithItsLastWords(t *testing.T) {
	t.Setenv(asProgram, "1")
	cfg := config{DB: t.TempDir(), Broker: "redis://host:port"}
	err := keepForwarding(t.Context(), cfg, &progress{}, io.Discard)
	require.ErrorContains(t, err, "forwarder ended: exit status 1: redisstreams: URL is")
}

func TestBadInputIsOneClearLine(t *testing.T) {
	t.Parallel()
	const secret = "canary-s3cret"
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"an unknown broker", []string{"-broker", "kafka://u:" + secret + "@h"}, "-broker wants a URL that begins with amqp://"},
		{"a database that is not there", []string{"-db", "postgres://u:" + secret + "@127.0.0.1:1/x"}, "the database:"},
		{"a broker that is not there", []string{"-broker", "amqp://u:" + secret + "@127.0.0.1:1/"}, "the broker:"},
		{"a Redis that is not there", []string{"-dedup", "redis://u:" + secret + "@127.0.0.1:1"}, "the Redis of -dedup:"},
		{"a database URL that is none", []string{"-db", "postgres://u:" + secret + "@h:port/x"}, "the database:"},
		{"a broker URL that is none", []string{"-broker", "redis://u:" + secret + "@h:port"}, "the broker:"},
		{"wrong credentials", []string{"-db", withUser(t, testenv.Postgres(t), secret)}, "the database:"},
		{"a negative number", []string{"-orders", "-1"}, "-orders is at least 1"},
		{"a word too many", []string{"orders"}, "unknown argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRun(t, c.args...)
			var exit *exec.ExitError
			require.ErrorAs(t, r.Run(), &exit)
			require.Equal(t, 1, exit.ExitCode())
			out := r.output.String()
			require.True(t, strings.HasPrefix(out, "demo: "), out)
			require.Equal(t, 1, strings.Count(out, "\n"), out)
			require.Contains(t, out, c.want)
			require.NotContains(t, out, secret)
			requireEmpty(t, r.temp)
		})
	}
}

func withUser(t *testing.T, address, password string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	u.User = url.UserPassword("nobody", password)
	return u.String()
}
