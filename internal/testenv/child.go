package testenv

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
)

const roleVariable = "MILLRACE_TEST_ROLE"

// lifeline is the descriptor that a child reads until its parent is gone: the first of ExtraFiles.
const lifeline = 3

// Child is this test binary, not started yet, in a role that TestMain registered with Role: a process
// that a test may kill -9 without taking the tests with it. Env is added to the environment. It is
// killed when the test ends, and dies when the test process dies. Its standard error goes to the
// test's unless the caller sets another; ExtraFiles may be appended to.
func Child(t testing.TB, role string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	check(t, "child", err)
	read, write, err := os.Pipe()
	check(t, "child", err)
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	cmd.ExtraFiles = []*os.File{read}
	cmd.Stderr = os.Stderr
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		_ = read.Close()
		_ = write.Close()
	})
	return cmd
}

// play runs the role and returns the exit status.
func play(name string, roles map[string]func()) int {
	run, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "testenv: %s=%s: TestMain registers no such role\n", roleVariable, name)
		return 2
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(lifeline, "lifeline"))
		os.Exit(3)
	}()
	run()
	return 0
}
