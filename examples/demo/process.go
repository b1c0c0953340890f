package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"
)

// stopTimeout is how long a child may take to stop; then it is killed, or ends itself.
const stopTimeout = 10 * time.Second

// child is this program in another role, as a process of its own.
//
// It gets its configuration as the first line of its standard input: a command line shows passwords to everybody
// on the machine. The pipe then stays open as the child's lifeline: when it closes, because we want the child to
// stop or because this process was killed itself, the child stops.
type child struct {
	cmd      *exec.Cmd
	lifeline io.Closer
	ended    chan struct{}
	err      error // why it ended, readable once ended is closed
}

// startChild starts a child. It calls onLine with each line of its standard output, and copies its standard error to log.
func startChild(role string, cfg config, log io.Writer, onLine func([]byte)) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, role), ended: make(chan struct{})}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	c.lifeline = in
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	fmt.Fprintf(log, "%s: started as process %d\n", cfg.Name, c.cmd.Process.Pid)
	go c.listen(cfg.Name, out, errs, log, onLine)
	if err := json.NewEncoder(in).Encode(cfg); err != nil {
		c.kill()
		return nil, cmp.Or(c.err, err)
	}
	return c, nil
}

// listen reads what the child has to say, until it ends.
func (c *child) listen(name string, out, errs io.Reader, log io.Writer, onLine func([]byte)) {
	defer close(c.ended)
	var lastWords string
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			lastWords = lines.Text()
			fmt.Fprintf(log, "%s: %s\n", name, lastWords)
		}
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		onLine(lines.Bytes())
	}
	reading.Wait() // Wait closes the pipes
	if err := c.cmd.Wait(); err != nil {
		c.err = fmt.Errorf("%s ended: %w: %s", name, err, strings.TrimPrefix(lastWords, "demo: "))
	}
}

// kill is kill -9: the child learns nothing of it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// stop asks the child to finish what it has in hand, and waits.
func (c *child) stop() error {
	_ = c.lifeline.Close()
	select {
	case <-c.ended:
		return c.err
	case <-time.After(stopTimeout + time.Second):
		c.kill()
		return errors.New("a process did not stop in time and was killed")
	}
}

// runChild runs a role until the lifeline closes.
func runChild(role func(context.Context, config, *slog.Logger) error) error {
	signal.Ignore(os.Interrupt) // Ctrl-C reaches the whole group; the parent decides what it means

	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return errors.New("the roles of the demo are for itself to start")
	}
	var cfg config
	if err := json.Unmarshal(line, &cfg); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		stop()
		time.Sleep(stopTimeout)
		os.Exit(1)
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	return role(ctx, cfg, log)
}
