package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/testenv/servers"
)

func TestMain(m *testing.M) {
	testenv.Main(m, testenv.Role("launcher", main))
}

// launch starts the launcher with Redis, and a command that tells where it is and waits.
func launch(t *testing.T, script string, stdin io.Reader) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := testenv.Child(t, "launcher", servers.Redis.Variable()+"=")
	cmd.Args = append(cmd.Args, "-only", "redis", "--", "sh", "-c", script)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stdin = stdin
	require.NoError(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

const tell = "echo $MILLRACE_TEST_REDIS_URL; echo $$; "

func host(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	require.True(t, lines.Scan())
	u, err := url.Parse(lines.Text())
	require.NoError(t, err)
	return u.Host
}

func listens(host string) bool {
	conn, err := net.DialTimeout("tcp", host, time.Second)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

func TestTheCommandFindsTheServerAndItsStatusIsReturned(t *testing.T) {
	cmd, lines := launch(t, tell+"read line; exit 7", nil)
	h := host(t, lines)
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, 7, exit.ExitCode())
	require.False(t, listens(h))
}

func TestASignalEndsTheCommandItsChildrenAndTheServer(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		cmd, lines := launch(t, tell+"sleep 1000 & echo $!; wait", nil)
		h := host(t, lines)
		require.True(t, lines.Scan())
		require.True(t, lines.Scan())
		sleeper := "/proc/" + lines.Text() + "/stat"
		require.True(t, listens(h))
		require.NoError(t, cmd.Process.Signal(sig))
		require.Error(t, cmd.Wait())
		require.False(t, listens(h))
		testenv.Eventually(t, time.Minute, "the command's child to end", func() bool {
			stat, err := os.ReadFile(sleeper)
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

func TestTheServerEndsWhenTheLauncherIsKilled(t *testing.T) {
	stdin, alive, err := os.Pipe() // the command runs until the other end is closed
	require.NoError(t, err)
	t.Cleanup(func() { _ = alive.Close(); _ = stdin.Close() })
	cmd, lines := launch(t, tell+"exec cat", stdin)
	h := host(t, lines)
	require.True(t, listens(h))
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	testenv.Eventually(t, time.Minute, "the server to end", func() bool { return !listens(h) })
}

func TestAServerInTheEnvironmentIsNotStarted(t *testing.T) {
	t.Setenv(servers.Redis.Variable(), "redis://elsewhere")
	var pool servers.Pool
	env, err := start(context.Background(), &pool, []servers.Kind{servers.Redis})
	require.NoError(t, err)
	require.Empty(t, env)
	require.NoError(t, pool.Close())
}

func TestWrongUseSaysWhatIsRight(t *testing.T) {
	status, err := run("", nil)
	require.Equal(t, 2, status)
	require.ErrorContains(t, err, "no command")
	status, err = run("oracle", []string{"true"})
	require.Equal(t, 2, status)
	require.ErrorContains(t, err, "oracle")
}
