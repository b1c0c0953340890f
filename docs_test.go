package millrace_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGuaranteesNameTestsThatExist keeps docs/guarantees.md honest: each test it names is in the tree.
func TestGuaranteesNameTestsThatExist(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/guarantees.md")
	require.NoError(t, err)

	var tests strings.Builder
	eachGoFile(t, func(path, text string) {
		if strings.HasSuffix(path, "_test.go") || strings.Contains(path, "test/") {
			tests.WriteString(text)
		}
	})
	names := regexp.MustCompile("`(Test[A-Z][A-Za-z0-9_]*)").FindAllStringSubmatch(string(page), -1)
	require.NotEmpty(t, names, "the page names no test")
	for _, name := range names {
		if !strings.Contains(tests.String(), "func "+name[1]+"(") {
			t.Errorf("docs/guarantees.md names %s, which does not exist", name[1])
		}
	}
}

// TestReadmeShowsTheExample compares the README's code with the example that is compiled and run.
func TestReadmeShowsTheExample(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)

	var example strings.Builder
	files, err := filepath.Glob("examples/orders/*.go")
	require.NoError(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		example.WriteString(squeeze(string(text)))
	}
	for _, block := range blocks {
		for _, line := range strings.Split(block[1], "\n") {
			if code := squeeze(uncomment(line)); code != "" && !strings.Contains(example.String(), code) {
				t.Errorf("the README shows a line that examples/orders does not have: %s", strings.TrimSpace(line))
			}
		}
	}
}

// TestFilesStayReadable: when a file outgrows 400 lines, a noun is missing.
func TestFilesStayReadable(t *testing.T) {
	t.Parallel()
	eachGoFile(t, func(path, text string) {
		if n := strings.Count(text, "\n"); n > 400 && !strings.HasSuffix(path, "_test.go") {
			t.Errorf("%s has %d lines", path, n)
		}
	})
}

func eachGoFile(t *testing.T, do func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil {
			do(path, string(text))
		}
		return err
	})
	require.NoError(t, err)
}

// squeeze removes all white space, so that indentation does not count.
func squeeze(s string) string { return strings.Join(strings.Fields(s), "") }

// uncomment cuts a trailing comment off a line of code.
func uncomment(s string) string {
	code, _, _ := strings.Cut(s, " // ")
	if strings.HasPrefix(strings.TrimSpace(code), "//") {
		return ""
	}
	return code
}
