package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A participant runs in a process of its own, so that CPU and memory are its own. The process is this
// program again: it reads what to do from its standard input, says "ready", waits for "go", works, and
// writes a Sample.

// childVariable marks the process of a participant.
const childVariable = "MILLRACE_BENCH_CHILD"

// params is what a participant is told.
type params struct {
	Task    string
	DB      database
	Broker  broker
	Dedup   string        // URL of a Redis, or empty
	N       int           // messages to move
	Cutoff  time.Duration // after which it is stopped
	Rate    int           // messages a second
	Writers int           // goroutines that publish
	Tuned   bool          // of a peer: with the settings that make it fast
	Way     string        // how it writes, or a name of its own
	Driver  int           // of the database
	Handler string        // of a consumer that confirms
	Words   string        // where confirmations go, or empty
	Outside bool          // the forwarder runs in another process
	Options map[string]int
	Profile string // file for a CPU profile, or empty
}

// task is what a participant does. It prepares, calls begin, and works; its Sample needs no Seconds,
// CPU and RSS. Where the measure is not the time until it returns, it sets Seconds.
type task func(ctx context.Context, p params, begin func()) (Sample, error)

var errCut = errors.New("cut off")

// childMain is the whole life of a participant's process.
func childMain() {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	var p params
	if err == nil {
		err = json.Unmarshal(line, &p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench child:", err)
		os.Exit(2)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// "go" starts the measure. The end of the input is the end of the work: the parent is gone, or has
	// enough.
	started := make(chan struct{})
	go func() {
		if _, err := in.ReadBytes('\n'); err == nil {
			close(started)
			_, _ = in.ReadBytes('\n')
		}
		cancel()
		time.Sleep(20 * time.Second)
		os.Exit(3)
	}()
	s := measure(ctx, p, started)
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		os.Exit(2)
	}
}

func measure(ctx context.Context, p params, started <-chan struct{}) Sample {
	run, ok := tasks[p.Task]
	if !ok {
		return Sample{Err: "no such task: " + p.Task}
	}
	var begun time.Time
	var cpu float64
	begin := func() {
		fmt.Println("ready")
		select {
		case <-started:
		case <-ctx.Done():
		}
		if p.Profile != "" {
			if f, err := os.Create(p.Profile); err == nil {
				_ = pprof.StartCPUProfile(f)
			}
		}
		cpu, begun = ownCPU(), time.Now()
	}
	s, err := run(ctx, p, begin)
	if err != nil && !errors.Is(err, errCut) {
		s.Err = err.Error()
	}
	if s.Seconds == 0 && !begun.IsZero() {
		s.Seconds = time.Since(begun).Seconds()
	}
	if s.CPU == 0 {
		s.CPU = ownCPU() - cpu
	}
	s.RSS = peakRSS()
	pprof.StopCPUProfile()
	return s
}

func ownCPU() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// peakRSS is the most memory that this process ever held.
func peakRSS() int64 {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.SplitSeq(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// participant is a started process.
type participant struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errors bytes.Buffer
}

// start starts a process and returns when it is ready to be measured.
func start(ctx context.Context, p params) (*participant, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &participant{cmd: exec.CommandContext(ctx, exe)}
	c.cmd.Env = append(os.Environ(), childVariable+"=1")
	c.cmd.Stderr = &c.errors
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	task, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	if _, err := c.in.Write(append(task, '\n')); err != nil {
		return nil, errors.Join(err, c.end())
	}
	line, err := c.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = c.end()
		return nil, fmt.Errorf("%s did not get ready: %v %s%s", p.Task, err, line, c.errors.String()) //nolint:errorlint // may be nil
	}
	return c, nil
}

// run measures, and returns when the participant has nothing more to do.
func (c *participant) run() (Sample, error) {
	if err := c.begin(); err != nil {
		return Sample{}, errors.Join(err, c.end())
	}
	return c.result()
}

func (c *participant) begin() error {
	_, err := io.WriteString(c.in, "go\n")
	return err
}

// result waits for the Sample.
func (c *participant) result() (Sample, error) {
	var s Sample
	err := json.NewDecoder(c.out).Decode(&s)
	ended := c.end()
	if err != nil {
		return s, fmt.Errorf("no result: %w %s", errors.Join(err, ended), c.errors.String())
	}
	if s.Err != "" {
		return s, errors.New(s.Err)
	}
	return s, nil
}

// stop ends the work of a participant that runs until it is told, and returns its Sample.
func (c *participant) stop() (Sample, error) {
	_ = c.in.Close()
	return c.result()
}

func (c *participant) end() error {
	_ = c.in.Close()
	return c.cmd.Wait()
}

// profileFile names a CPU profile after the run.
func profileFile(folder, name, who string, round int) string {
	if folder == "" {
		return ""
	}
	clean := strings.NewReplacer("/", "-", " ", "-", ",", "")
	return filepath.Join(folder, fmt.Sprintf("%s.%s.%d.pprof", clean.Replace(name), clean.Replace(who), round))
}
