package servers

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

// SentinelMaster is the name by which sentinels know their master.
const SentinelMaster = "main"

// StartSentinel starts a sentinel for the master at this host:port, which takes it for dead after
// silence. Two sentinels have to agree. It needs an installed Redis.
func (p *Pool) StartSentinel(ctx context.Context, master string, silence time.Duration) (*Server, error) {
	product := &product{
		kind:     "sentinel",
		binaries: []binary{redisBinary},
		users:    redisServer.users,
		install:  redisServer.install,
		quit:     syscall.SIGKILL,
		stop:     syscall.SIGTERM,
		create:   func(_ context.Context, n *node) error { return writeSentinel(n, master, silence) },
		command: func(n *node) []process {
			return []process{{argv: []string{redisBinary.path(), n.path("sentinel.conf"), "--sentinel"}}}
		},
		address: redisServer.address,
		ping:    pingSentinel(master),
	}
	if err := product.missing(); err != nil {
		return nil, fmt.Errorf("sentinel: %w: install it with: %s", err, product.install)
	}
	return p.startLocal(ctx, product, Options{})
}

// writeSentinel writes the file in which a sentinel also keeps what it learns.
func writeSentinel(n *node, master string, silence time.Duration) error {
	host, masterPort, err := net.SplitHostPort(master)
	if err != nil {
		return err
	}
	return n.write("sentinel.conf", fmt.Sprintf(`port %d
bind 127.0.0.1
dir %s
sentinel monitor %[3]s %s %s 2
sentinel down-after-milliseconds %[3]s %[6]d
sentinel failover-timeout %[3]s 10000
`, n.port, n.folder, SentinelMaster, host, masterPort, silence.Milliseconds()))
}

// pingSentinel knows the sentinel by its master.
func pingSentinel(master string) func(context.Context, *node, Address) error {
	return func(ctx context.Context, n *node, _ Address) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", port.Address(n.port))
		if err != nil {
			return err
		}
		_ = conn.Close()
		client := redis.NewSentinelClient(&redis.Options{Addr: port.Address(n.port), MaxRetries: -1})
		defer client.Close()
		at, err := client.GetMasterAddrByName(ctx, SentinelMaster).Result()
		if err != nil {
			return err
		}
		if len(at) != 2 || net.JoinHostPort(at[0], at[1]) != master {
			return fmt.Errorf("another sentinel has port %s", strconv.Itoa(n.port))
		}
		return nil
	}
}
