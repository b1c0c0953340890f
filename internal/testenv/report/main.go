// Command report runs `go test -json` and writes its output for people: a line for each package, and all
// that a failing test said. It fails where go test does not: when a test was skipped that the list of
// allowed skips does not name, and when no test ran.
//
//	go run ./internal/testenv/report -skips internal/testenv/skips.txt -- go test -json ./...
//
// Its exit status is 1 for all of these, for failing tests, and when the command fails.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
)

func main() {
	skips := flag.String("skips", "", "`file` with the tests that may be skipped")
	flag.Parse()
	ok, err := run(*skips, flag.Args(), os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "report: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(skips string, command []string, out io.Writer) (ok bool, err error) {
	if len(command) == 0 {
		return false, errors.New("no command: report [-skips file] -- go test -json [argument ...]")
	}
	r := &report{out: out, said: make(map[test][]string)}
	if skips != "" {
		if r.allowed, err = readSkips(skips); err != nil {
			return false, err
		}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	err = r.read(lines)
	ok = r.summary()
	if werr := cmd.Wait(); werr != nil && ok {
		err = errors.Join(err, fmt.Errorf("%s: %w", strings.Join(command, " "), werr))
	}
	return ok, err
}

// skip is one entry of the list of allowed skips.
type skip struct{ pkg, name string }

func readSkips(file string) ([]skip, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []skip
	for n, line := range strings.Split(string(content), "\n") {
		line, _, _ = strings.Cut(line, "#")
		switch f := strings.Fields(line); len(f) {
		case 0:
		case 2:
			if _, err := path.Match(f[1], ""); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", file, n+1, err)
			}
			list = append(list, skip{pkg: f[0], name: f[1]})
		default:
			return nil, fmt.Errorf("%s:%d: want a package and a test's name", file, n+1)
		}
	}
	return list, nil
}

// test is a test, or with an empty name a whole package.
type test struct{ pkg, name string }

// event is a line of go test -json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Output     string
}

type report struct {
	out     io.Writer
	allowed []skip
	said    map[test][]string // output of tests that have not ended

	passed, skipped int
	failed, illegal []test
}

func (r *report) read(in io.Reader) error {
	for lines := bufio.NewReader(in); ; {
		line, err := lines.ReadString('\n')
		if line != "" {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
}

func (r *report) line(line string) {
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		fmt.Fprint(r.out, line) // go's own words, not a test's
		return
	}
	t := test{pkg: e.Package, name: e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output(t, e.Output)
	case "pass":
		if t.name != "" {
			r.passed++
		}
		delete(r.said, t)
	case "skip":
		r.skip(t)
		delete(r.said, t)
	case "fail":
		r.failed = append(r.failed, t)
		r.tell(t)
	}
}

// output keeps what a test says until it is known how it ends. A package's last line is shown at once.
func (r *report) output(t test, text string) {
	if t.name == "" && (strings.HasPrefix(text, "ok  \t") || strings.HasPrefix(text, "FAIL\t")) {
		if strings.HasPrefix(text, "FAIL") {
			r.tell(t) // what the package said outside its tests, like a panic's trace
		}
		fmt.Fprint(r.out, text)
		return
	}
	r.said[t] = append(r.said[t], text)
}

func (r *report) tell(t test) {
	for _, text := range r.said[t] {
		fmt.Fprint(r.out, text)
	}
	delete(r.said, t)
}

func (r *report) skip(t test) {
	if t.name == "" {
		return // a package without tests
	}
	for _, s := range r.allowed {
		if match, _ := path.Match(s.name, t.name); match && strings.HasSuffix("/"+t.pkg, "/"+s.pkg) {
			r.skipped++
			return
		}
	}
	r.illegal = append(r.illegal, t)
	r.tell(t)
}

// summary writes the last lines and tells whether all is well.
func (r *report) summary() bool {
	for t := range r.said { // it neither passed nor failed: the binary died
		if t.name != "" {
			r.failed = append(r.failed, t)
			r.tell(t)
		}
	}
	r.list("FAILED", r.failed)
	r.list("SKIPPED without being on the list of allowed skips", r.illegal)
	fmt.Fprintf(r.out, "\n%d tests passed, %d failed, %d skipped as listed\n", r.passed, len(r.failed), r.skipped)
	if r.passed == 0 {
		fmt.Fprintln(r.out, "no test ran")
	}
	return r.passed > 0 && len(r.failed) == 0 && len(r.illegal) == 0
}

func (r *report) list(title string, tests []test) {
	if len(tests) == 0 {
		return
	}
	fmt.Fprintf(r.out, "\n%s:\n", title)
	for _, t := range tests {
		fmt.Fprintf(r.out, "  %s %s\n", t.pkg, t.name)
	}
}
