package testenv

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

// clusterTimeout is for a cluster to agree on something, on a machine that is busy with other tests.
const clusterTimeout = 2 * time.Minute

// nodeTimeout is after what silence the others take a node for dead. Shorter, and a node that the
// machine did not let run for a while would be failed over without a reason.
const nodeTimeout = 6 * time.Second

// Cluster is a Redis Cluster of one test's own.
type Cluster struct {
	// Addrs are the host:port of all nodes.
	Addrs []string
	// Masters share the slots evenly, in order; Replicas[i] is that of Masters[i]. They are those of
	// the start, whatever became of them.
	Masters, Replicas []*Server
}

// RedisCluster starts three masters with a replica each and returns when every node says that the
// cluster is well and every replica has all data. A dead master is replaced after some 6 s. Args are as
// for OwnRedis.
func RedisCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{}
	var bus []string
	for i := range 6 {
		busPort, err := port.Free()
		check(t, "bus port", err)
		bus = append(bus, strconv.Itoa(busPort))
		s := OwnRedis(t, append([]string{
			"--cluster-enabled", "yes",
			"--cluster-port", bus[i],
			"--cluster-node-timeout", strconv.FormatInt(nodeTimeout.Milliseconds(), 10),
			"--cluster-replica-validity-factor", "0",
			"--repl-diskless-sync-delay", "0",
		}, args...)...)
		c.Addrs = append(c.Addrs, s.addr())
		if i < 3 {
			c.Masters = append(c.Masters, s)
		} else {
			c.Replicas = append(c.Replicas, s)
		}
	}
	c.join(t, bus)
	return c
}

func (c *Cluster) join(t testing.TB, bus []string) {
	t.Helper()
	nodes := c.nodes()
	ids := make([]string, len(nodes))
	for i, s := range nodes {
		ids[i] = s.text(t, "CLUSTER", "MYID")
		s.text(t, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		host, p, err := net.SplitHostPort(s.addr())
		check(t, "address", err)
		nodes[0].text(t, "CLUSTER", "MEET", host, p, bus[i])
	}
	for i, m := range c.Masters {
		m.text(t, "CLUSTER", "ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1)
	}
	for i, r := range c.Replicas {
		Eventually(t, clusterTimeout, "a node to know its master", func() bool {
			return strings.Contains(r.text(t, "CLUSTER", "NODES"), ids[i]+" 127.0.0.1")
		})
		r.text(t, "CLUSTER", "REPLICATE", ids[i])
	}
	for i, s := range nodes {
		Eventually(t, clusterTimeout, "the cluster to be well", func() bool {
			info := s.text(t, "CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:6") &&
				strings.Count(s.text(t, "CLUSTER", "NODES"), "slave") == 3 && s.replicated(t, i < 3)
		})
	}
}

func (c *Cluster) nodes() []*Server {
	return append(append([]*Server(nil), c.Masters...), c.Replicas...)
}

// MasterOf is the index of the master that had the key's slot at the start.
func (c *Cluster) MasterOf(t testing.TB, key string) int {
	t.Helper()
	slot, err := strconv.Atoi(c.Replicas[0].text(t, "CLUSTER", "KEYSLOT", key))
	check(t, "slot", err)
	for i := range c.Masters {
		if slot < (i+1)*16384/3 {
			return i
		}
	}
	return -1
}

// Detach ends replication from master to replica, for good: what is written to the master from now on
// never reaches the replica, which can still be promoted.
func Detach(t testing.TB, master, replica *Server) {
	t.Helper()
	// A password that the master does not have: the replica cannot come back.
	replica.text(t, "CONFIG", "SET", "masterauth", "wrong")
	Eventually(t, clusterTimeout, "the replica to be gone", func() bool {
		master.text(t, "CLIENT", "KILL", "TYPE", "replica")
		return strings.Contains(master.text(t, "INFO", "replication"), "connected_slaves:0")
	})
	Eventually(t, clusterTimeout, "the replica to notice", func() bool {
		return strings.Contains(replica.text(t, "INFO", "replication"), "master_link_status:down")
	})
}

// CaughtUp waits until the replica of a master has all that was written so far.
func CaughtUp(t testing.TB, master *Server) {
	t.Helper()
	Eventually(t, clusterTimeout, "the replica to have all data", func() bool {
		info := master.text(t, "INFO", "replication")
		_, offset, _ := strings.Cut(info, "master_repl_offset:")
		offset, _, _ = strings.Cut(offset, "\r")
		return strings.Contains(info, "state=online,offset="+offset+",")
	})
}

// addr is the host:port of a Redis server.
func (s *Server) addr() string {
	opts, err := redis.ParseURL(s.URL)
	check(s.t, "address", err)
	return opts.Addr
}

// replicated tells whether all replicas of a master, or this replica, are up to date.
func (s *Server) replicated(t testing.TB, master bool) bool {
	t.Helper()
	info := s.text(t, "INFO", "replication")
	if master {
		return strings.Contains(info, "state=online")
	}
	return strings.Contains(info, "master_link_status:up")
}

// text asks a Redis server, and is its answer as text.
func (s *Server) text(t testing.TB, args ...any) (answer string) {
	t.Helper()
	opts, err := redis.ParseURL(s.URL)
	check(t, "address", err)
	check(t, fmt.Sprint(args...), within(func(ctx context.Context) error {
		client := redis.NewClient(opts)
		defer client.Close()
		v, err := client.Do(ctx, args...).Result()
		answer = fmt.Sprint(v)
		return err
	}))
	return answer
}
