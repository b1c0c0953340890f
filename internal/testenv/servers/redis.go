package servers

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

var redisBinary = binary{names: []string{"redis-server", "valkey-server"}, folders: []string{"/usr/bin", "/usr/local/bin"}}

var redisServer = product{
	kind:     Redis,
	binaries: []binary{redisBinary},
	users:    []string{"redis"},
	install:  "apt-get install redis-server",
	quit:     syscall.SIGKILL,
	stop:     syscall.SIGTERM,
	create:   func(context.Context, *node) error { return nil },
	command:  redisCommand,
	address: func(n *node) Address {
		return Address{URL: "redis://" + port.Address(n.port) + "/0"}
	},
	ping: pingRedis,
}

func redisCommand(n *node) []process {
	argv := []string{
		redisBinary.path(),
		"--port", strconv.Itoa(n.port),
		"--bind", "127.0.0.1",
		"--dir", n.folder,
		"--save", "",
		"--appendonly", "yes",
		"--maxmemory-policy", "noeviction",
		"--enable-debug-command", "yes",
	}
	return []process{{argv: append(argv, n.opts.Args...)}}
}

// pingRedis has no password to know its server by, as the others have; it looks at the data folder. The
// node is nil in a container, whose port the engine reserves.
func pingRedis(ctx context.Context, n *node, a Address) error {
	opts, err := redis.ParseURL(a.URL)
	if err != nil {
		return err
	}
	// Asked before the client is: that logs each port where nobody listens yet.
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", opts.Addr)
	if err != nil {
		return err
	}
	_ = conn.Close()
	opts.MaxRetries = -1
	client := redis.NewClient(opts)
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil || n == nil {
		return err
	}
	info, err := client.ConfigGet(ctx, "dir").Result()
	if err != nil {
		return err
	}
	if !strings.HasSuffix(info["dir"], n.folder) {
		return errors.New("another server has the port")
	}
	return nil
}
