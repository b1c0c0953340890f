package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// composeFile is the repository's, in its root.
const composeFile = "compose.yaml"

// composeAvailable says why there are no containers, if there are none. It asks once: the answer takes
// a second where the engine is installed and does not run.
var composeAvailable = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{{"compose", "version"}, {"info"}} {
		if err := exec.CommandContext(ctx, "docker", args...).Run(); err != nil {
			return fmt.Errorf("docker %s: %w", args[0], err)
		}
	}
	return nil
})

// container is the machine of a server that runs in a container: one service of compose.yaml, in a
// project of its own.
type container struct {
	service string
	file    string
	project string
	env     []string
}

func (p *Pool) startContainer(ctx context.Context, product *product, opts Options) (*Server, error) {
	file, err := findUp(composeFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", product.kind, err)
	}
	n, err := p.newNode(product, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", product.kind, err)
	}
	c := newContainer(n, file)
	if err := p.entrust(n, c); err != nil {
		return nil, fmt.Errorf("%s: %w", product.kind, err)
	}
	s := &Server{machine: c, Address: product.address(n)}
	if product.kind == MariaDB { // the image knows root alone
		s.URL = strings.Replace(s.URL, account+":", "root:", 1)
	}
	s.ping = func(ctx context.Context) error { return product.ping(ctx, nil, s.Address) }
	if err := s.Start(ctx); err != nil {
		return nil, fmt.Errorf("%s: start container: %w", product.kind, err)
	}
	return s, nil
}

func newContainer(n *node, file string) *container {
	name := strings.ToUpper(string(n.product.kind))
	return &container{
		service: string(n.product.kind),
		file:    file,
		project: "millrace-test-" + strings.ToLower(rand.Text()[:12]),
		env: []string{
			"MILLRACE_PASSWORD=" + n.password,
			name + "_PORT=" + strconv.Itoa(n.port),
			name + "_ADMIN_PORT=" + strconv.Itoa(n.admin),
			name + "_ARGS=" + strings.Join(n.opts.Args, " "),
		},
	}
}

// entrust has the guard remove the container and its data.
func (p *Pool) entrust(n *node, c *container) error {
	script := fmt.Sprintf("docker compose -p '%s' -f '%s' down -v -t 1\n", c.project, c.file)
	if err := n.write("remove", script); err != nil {
		return err
	}
	return p.guard.run(n.path("remove"))
}

func (c *container) start(ctx context.Context) error { return c.compose(ctx, "up", "-d", "--wait") }
func (c *container) kill() error                     { return c.now("kill", "-s", "KILL") }
func (c *container) stop() error                     { return c.now("stop", "-t", "30") }
func (c *container) pause() error                    { return c.now("pause") }
func (c *container) resume() error                   { return c.now("unpause") }

func (c *container) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return c.docker(ctx, "down", "-v")
}

// alive is decided by `up --wait`.
func (c *container) alive() error { return nil }

func (c *container) now(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return c.compose(ctx, args...)
}

func (c *container) compose(ctx context.Context, args ...string) error {
	return c.docker(ctx, append(args, c.service)...)
}

func (c *container) docker(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"compose", "-p", c.project, "-f", c.file}, args...)...)
	cmd.Env = append(os.Environ(), c.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker compose %s: %w\n%s", args[0], err, lastLines(string(out)))
	}
	return nil
}

// findUp looks for a file in the working folder and those above: tests run in their package's.
func findUp(name string) (string, error) {
	folder, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if folder == filepath.Dir(folder) {
			return "", fmt.Errorf("no %s in this folder or above", name)
		}
		folder = filepath.Dir(folder)
	}
}
