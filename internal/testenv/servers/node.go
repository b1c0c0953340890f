package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

// account is the user of our databases and brokers. Its password is new for each server: a server
// that lets us in is the one that we started.
const account = "millrace"

// product is how one kind of server is found, set up and started from installed binaries.
type product struct {
	kind     Kind
	binaries []binary
	users    []string // who it runs as when we are root: the first that exists
	install  string   // the command that installs it
	quit     syscall.Signal
	stop     syscall.Signal

	create  func(ctx context.Context, n *node) error
	command func(n *node) []process
	address func(n *node) Address
	ping    func(ctx context.Context, n *node, a Address) error
}

// process is one program of a server. A server's first process is the one that is killed and
// started again; the others only have to be there.
type process struct {
	argv []string
	env  []string
}

// binary is a program under the names and in the folders where distributions put it; the search path
// comes first, unless the program is wanted from the folder because a wrapper hides it.
type binary struct {
	names   []string
	folders []string // patterns of filepath.Glob, last match first
	hidden  bool
}

var products = map[Kind]*product{
	Postgres: &postgres,
	MariaDB:  &mariadb,
	Redis:    &redisServer,
	RabbitMQ: &rabbitmq,
}

// missing names the binaries that are not installed.
func (p *product) missing() error {
	var errs []error
	for _, b := range p.binaries {
		if b.path() == "" {
			errs = append(errs, fmt.Errorf("%s is not installed", b.names[0]))
		}
	}
	return errors.Join(errs...)
}

func (b binary) path() string {
	if !b.hidden {
		for _, name := range b.names {
			if path, err := exec.LookPath(name); err == nil {
				return path
			}
		}
	}
	for _, folder := range b.folders {
		for _, name := range b.names {
			found, _ := filepath.Glob(filepath.Join(folder, name))
			if len(found) > 0 {
				return found[len(found)-1]
			}
		}
	}
	return ""
}

// node is one server on this machine.
type node struct {
	product  *product
	opts     Options
	folder   string
	port     int
	admin    int // RabbitMQ's management API
	epmd     int // RabbitMQ's port mapper
	dist     int // RabbitMQ's node to node traffic
	password string
	run      *credentials // nil: as ourselves
}

func (p *Pool) newNode(product *product, opts Options) (*node, error) {
	folder, err := p.newFolder(product.kind)
	if err != nil {
		return nil, err
	}
	n := &node{product: product, opts: opts, folder: folder, password: rand.Text()}
	for _, dst := range []*int{&n.port, &n.admin, &n.epmd, &n.dist} {
		if *dst, err = port.Free(); err != nil {
			return nil, err
		}
	}
	if n.run, err = unprivileged(product.users); err != nil {
		return nil, err
	}
	if n.run != nil {
		if err := os.Chown(folder, n.run.uid, n.run.gid); err != nil {
			return nil, fmt.Errorf("folder: %w", err)
		}
	}
	return n, nil
}

// write puts a file into the server's folder, readable by the server alone.
func (n *node) write(name, content string) error {
	path := filepath.Join(n.folder, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if n.run == nil {
		return nil
	}
	return os.Chown(path, n.run.uid, n.run.gid)
}

func (n *node) path(name string) string { return filepath.Join(n.folder, name) }

// prepare runs a program that sets up the server's data.
func (n *node) prepare(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	n.become(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(argv[0]), err, lastLines(string(out)))
	}
	return nil
}

// become makes a command run in the server's folder, and as its user.
func (n *node) become(cmd *exec.Cmd) {
	cmd.Dir = n.folder
	cmd.Env = append(os.Environ(), "HOME="+n.folder, "TMPDIR="+n.folder, "LC_ALL=C")
	if n.run != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(n.run.uid), Gid: uint32(n.run.gid)}
	}
}

type credentials struct{ uid, gid int }

// unprivileged is the user to become: several servers refuse to run as root.
func unprivileged(names []string) (*credentials, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range append(names[:len(names):len(names)], "nobody") {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &credentials{uid: uid, gid: gid}, nil
	}
	return nil, fmt.Errorf("no user to run as: none of %s and nobody exists", strings.Join(names, ", "))
}

// tempRoot is the folder for temporary files that every user can reach into.
func tempRoot() string {
	for _, root := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if os.Geteuid() != 0 || reachable(root) {
			return root
		}
	}
	return os.TempDir()
}

func reachable(path string) bool {
	for ; ; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if path == filepath.Dir(path) {
			return true
		}
	}
}

// lastLines is the end of a log.
func lastLines(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
