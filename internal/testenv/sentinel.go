package testenv

import (
	"context"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// Sentinel is a Redis that three sentinels watch, of one test's own.
type Sentinel struct {
	// Addrs are the host:port of the sentinels, Name is by what they know the master.
	Addrs []string
	Name  string
	// Master and Replica are those of the start, whatever became of them.
	Master, Replica *Server
}

// RedisSentinel starts a master, its replica and three sentinels, and returns when all know each other
// and the replica has all data. A dead master is replaced after some 8 s. Args are as for OwnRedis, for
// master and replica.
func RedisSentinel(t testing.TB, args ...string) *Sentinel {
	t.Helper()
	args = append([]string{"--repl-diskless-sync-delay", "0"}, args...)
	s := &Sentinel{Name: servers.SentinelMaster, Master: OwnRedis(t, args...)}
	s.Replica = OwnRedis(t, append(args, "--replicaof", strings.Replace(s.Master.addr(), ":", " ", 1))...)
	Eventually(t, clusterTimeout, "the replica to have all data", func() bool {
		return s.Replica.replicated(t, false) && s.Master.replicated(t, true)
	})
	var sentinels []*Server
	for range 3 {
		watcher, err := pool.StartSentinel(context.Background(), s.Master.addr(), nodeTimeout)
		check(t, "sentinel", err)
		t.Cleanup(func() { note(t, "end sentinel", watcher.Close()) })
		sentinels = append(sentinels, &Server{URL: watcher.URL, t: t, s: watcher})
	}
	for _, w := range sentinels {
		s.Addrs = append(s.Addrs, w.addr())
		Eventually(t, clusterTimeout, "the sentinels to know all", func() bool {
			known := w.text(t, "SENTINEL", "MASTER", s.Name)
			return strings.Contains(known, "num-slaves:1 ") && strings.Contains(known, "num-other-sentinels:2 ") &&
				strings.Contains(known, "flags:master ")
		})
	}
	return s
}
