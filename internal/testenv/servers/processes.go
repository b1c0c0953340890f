package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// processes is the machine of a server that runs from installed binaries.
type processes struct {
	node *node
	pool *Pool

	helpers []*running
	main    *running
	paused  []int // descendants that we stopped
}

// running is one started process, in a process group of its own.
type running struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// stopTimeout is for a graceful shutdown; after it the server is killed.
const stopTimeout = 2 * time.Minute

func (p *processes) start(context.Context) error {
	if p.main != nil && !p.main.ended() {
		return nil
	}
	commands := p.node.product.command(p.node)
	if p.helpers == nil {
		for _, c := range commands[1:] {
			r, err := p.launch(c, syscall.SIGKILL)
			if err != nil {
				return err
			}
			p.helpers = append(p.helpers, r)
		}
	}
	r, err := p.launch(commands[0], p.node.product.quit)
	p.main = r
	return err
}

func (p *processes) launch(c process, quit syscall.Signal) (*running, error) {
	cmd := p.pool.guard.command(quit, c.argv...)
	p.node.become(cmd)
	cmd.Env = append(cmd.Env, c.env...)
	r := &running{cmd: cmd, log: p.node.path(filepath.Base(c.argv[0]) + ".log"), done: make(chan struct{})}
	out, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.pool.wg.Go(func() {
		r.err = cmd.Wait()
		_ = p.pool.guard.del(quit, cmd.Process.Pid) // fails when the guard is at work already
		close(r.done)
	})
	return r, nil
}

func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (p *processes) alive() error {
	for _, r := range append(p.helpers[:len(p.helpers):len(p.helpers)], p.main) {
		if r == nil {
			return errors.New("not started")
		}
		if r.ended() {
			log, _ := os.ReadFile(r.log)
			return fmt.Errorf("%s ended: %w\n%s", filepath.Base(r.log), r.err, lastLines(string(log)))
		}
	}
	return nil
}

func (p *processes) kill() error {
	if p.main == nil || p.main.ended() {
		return nil
	}
	// Frozen first, so that no process of it starts another while we look for them.
	main := p.main.cmd.Process.Pid
	_ = syscall.Kill(main, syscall.SIGSTOP)
	all, err := descendants(main)
	for _, pid := range append(all, -main) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
	}
	<-p.main.done
	return errors.Join(err, p.forget(), gone(all))
}

func (p *processes) stop() error {
	if p.main == nil || p.main.ended() {
		return nil
	}
	if err := p.main.cmd.Process.Signal(p.node.product.stop); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	late := time.NewTimer(stopTimeout)
	defer late.Stop()
	select {
	case <-p.main.done:
		return nil
	case <-late.C:
		return errors.Join(fmt.Errorf("stop: still there after %v", stopTimeout), p.kill())
	}
}

func (p *processes) pause() error {
	main := p.main.cmd.Process.Pid
	if err := syscall.Kill(main, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	all, err := descendants(main)
	for _, pid := range all {
		// A frozen process does not notice that its parent died: the guard has to know it.
		err = errors.Join(err, p.pool.guard.add(syscall.SIGKILL, pid))
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	p.paused = append(p.paused, all...)
	return err
}

func (p *processes) resume() error {
	paused := append(p.paused, p.main.cmd.Process.Pid)
	err := p.forget()
	for _, pid := range paused {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	return err
}

func (p *processes) remove() error {
	for _, r := range p.helpers {
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		<-r.done
	}
	p.helpers = nil
	if err := os.RemoveAll(p.node.folder); err != nil {
		return fmt.Errorf("remove data: %w", err)
	}
	return nil
}

func (p *processes) forget() error {
	var err error
	for _, pid := range p.paused {
		err = errors.Join(err, p.pool.guard.del(syscall.SIGKILL, pid))
	}
	p.paused = nil
	return err
}
