package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// report runs the program over lines of go test -json.
func reported(t *testing.T, skips, lines string) (ok bool, out string) {
	t.Helper()
	folder := t.TempDir()
	list, input := filepath.Join(folder, "skips"), filepath.Join(folder, "input")
	require.NoError(t, os.WriteFile(list, []byte(skips), 0o600))
	require.NoError(t, os.WriteFile(input, []byte(lines), 0o600))
	var b strings.Builder
	ok, err := run(list, []string{"cat", input}, &b)
	require.NoError(t, err)
	return ok, b.String()
}

const passing = `{"Action":"output","Package":"m/a","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"m/a","Test":"TestA"}
{"Action":"output","Package":"m/a","Output":"PASS\n"}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.1s\n"}
{"Action":"pass","Package":"m/a"}
`

const skipping = `{"Action":"output","Package":"m/b","Test":"TestB/sub","Output":"why it is skipped\n"}
{"Action":"skip","Package":"m/b","Test":"TestB/sub"}
{"Action":"pass","Package":"m/b","Test":"TestB"}
`

func TestAPassingRunShowsThePackagesLineAndNotWhatTestsSay(t *testing.T) {
	ok, out := reported(t, "", passing)
	require.True(t, ok)
	require.Contains(t, out, "ok  \tm/a\t0.1s\n")
	require.Contains(t, out, "1 tests passed, 0 failed")
	require.NotContains(t, out, "chatter")
}

func TestAFailingTestFailsAndIsHeard(t *testing.T) {
	ok, out := reported(t, "", passing+`{"Action":"output","Package":"m/b","Test":"TestB","Output":"what broke\n"}
{"Action":"fail","Package":"m/b","Test":"TestB"}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\t0.1s\n"}
{"Action":"fail","Package":"m/b"}
`)
	require.False(t, ok)
	require.Contains(t, out, "what broke")
	require.Contains(t, out, "FAIL\tm/b")
	require.Contains(t, out, "  m/b TestB\n")
}

func TestASkipThatIsNotListedFails(t *testing.T) {
	ok, out := reported(t, "# a TestB/sub\nc TestB/sub\nb TestC/*\n", passing+skipping)
	require.False(t, ok)
	require.Contains(t, out, "why it is skipped")
	require.Contains(t, out, "  m/b TestB/sub\n")
}

func TestASkipThatIsListedPasses(t *testing.T) {
	for _, list := range []string{"b TestB/sub", "b TestB/s* # the reason"} {
		ok, out := reported(t, list, passing+skipping)
		require.True(t, ok, list)
		require.Contains(t, out, "1 skipped as listed")
	}
}

func TestARunWithoutTestsFails(t *testing.T) {
	ok, out := reported(t, "", `{"Action":"output","Package":"m/a","Output":"?   \tm/a\t[no test files]\n"}
{"Action":"skip","Package":"m/a"}
`)
	require.False(t, ok)
	require.Contains(t, out, "no test ran")
}

func TestATestThatNeverEndedFails(t *testing.T) {
	ok, out := reported(t, "", passing+`{"Action":"output","Package":"m/b","Test":"TestB","Output":"last words\n"}`)
	require.False(t, ok)
	require.Contains(t, out, "last words")
}

func TestWordsOfGoItselfAreShown(t *testing.T) {
	_, out := reported(t, "", "go: no such module\n")
	require.Contains(t, out, "go: no such module\n")
}

func TestACommandThatFailsFailsTheRunAlthoughTestsPassed(t *testing.T) {
	input := filepath.Join(t.TempDir(), "input")
	require.NoError(t, os.WriteFile(input, []byte(passing), 0o600))
	var b strings.Builder
	_, err := run("", []string{"sh", "-c", "cat " + input + "; exit 3"}, &b)
	require.ErrorContains(t, err, "exit status 3")
}

func TestAListThatCannotBeReadIsRefused(t *testing.T) {
	list := filepath.Join(t.TempDir(), "skips")
	require.NoError(t, os.WriteFile(list, []byte("\nTestB\n"), 0o600))
	_, err := run(list, []string{"true"}, &strings.Builder{})
	require.ErrorContains(t, err, "skips:2: want a package and a test's name")
}
