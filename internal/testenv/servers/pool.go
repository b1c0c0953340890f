package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Pool starts servers and ends them together. The zero value is ready. Safe for concurrent use.
type Pool struct {
	mu     sync.Mutex
	guard  *guard
	folder string
	count  int
	wg     sync.WaitGroup // one for each goroutine that waits for a process
}

// Start starts a server and returns when it answers.
func (p *Pool) Start(ctx context.Context, k Kind, opts Options) (*Server, error) {
	product := products[k]
	missing := product.missing()
	if missing == nil {
		return p.startLocal(ctx, product, opts)
	}
	if err := composeAvailable(); err != nil {
		return nil, fmt.Errorf("%s: %w, and no containers either (%w): install it with: %s, or set %s",
			k, missing, err, product.install, k.Variable())
	}
	return p.startContainer(ctx, product, opts)
}

// Close ends all servers and removes their data.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.guard == nil {
		return nil
	}
	err := p.guard.close()
	ended := make(chan struct{})
	go func() {
		p.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		return errors.Join(err, errors.New("some servers did not end"))
	}
	p.guard = nil
	return err
}

// startLocal tries again on another port, because somebody else may have taken the one that we found
// free.
func (p *Pool) startLocal(ctx context.Context, product *product, opts Options) (*Server, error) {
	var failed []error
	for range 3 {
		n, err := p.newNode(product, opts)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", product.kind, err)
		}
		s := &Server{machine: &processes{node: n, pool: p}, Address: product.address(n)}
		s.ping = func(ctx context.Context) error { return product.ping(ctx, n, s.Address) }
		if err = product.create(ctx, n); err == nil {
			err = s.Start(ctx)
		}
		if err == nil {
			return s, nil
		}
		failed = append(failed, err)
		_ = s.Close()
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%s: start: %w", product.kind, errors.Join(failed...))
}

// open makes the guard and the folder on first use.
func (p *Pool) open() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.guard != nil {
		return nil
	}
	folder, err := os.MkdirTemp(tempRoot(), "millrace-test-")
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	// Servers run as other users, whose folders are inside.
	if err := os.Chmod(folder, 0o711); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	g, err := newGuard(folder)
	if err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	p.folder, p.guard = folder, g
	return nil
}

// newFolder makes a folder for one server.
func (p *Pool) newFolder(k Kind) (string, error) {
	if err := p.open(); err != nil {
		return "", err
	}
	p.mu.Lock()
	p.count++
	path := filepath.Join(p.folder, string(k)+strconv.Itoa(p.count))
	p.mu.Unlock()
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("folder: %w", err)
	}
	return path, nil
}
