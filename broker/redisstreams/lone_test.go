package redisstreams_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// commands lists what the server has run meanwhile, one to a line, as MONITOR tells it.
func commands(t *testing.T, c *redis.Client, meanwhile func()) (lines []string) {
	t.Helper()
	conn, err := net.Dial("tcp", c.Options().Addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(stall)))
	_, err = fmt.Fprint(conn, "MONITOR\r\n")
	require.NoError(t, err)
	told := bufio.NewScanner(conn)
	require.True(t, told.Scan())
	require.Equal(t, "+OK", told.Text())
	meanwhile()
	require.NoError(t, c.Echo(t.Context(), "that was all").Err())
	for told.Scan() {
		if strings.Contains(told.Text(), "that was all") {
			return lines
		}
		lines = append(lines, told.Text())
	}
	require.NoError(t, told.Err())
	return nil
}

func TestOnlyMessagesThatShareAKeyGoThroughTheScript(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c, p := client(t, server.URL), publisher(t, quick(server.URL))
	publish(t, p, "s", numbered("k", 0, 2)...) // now the server knows the script
	asBatch := func(msgs []*message.Message) error {
		return errors.Join(p.PublishBatch(t.Context(), batchTo("s", len(msgs)), msgs)...)
	}
	byPublish := func(msgs []*message.Message) error { return p.Publish("s", msgs...) }
	for _, batch := range []struct {
		name             string
		send             func([]*message.Message) error
		keys             []string // of the messages; . = none
		scripts, grouped int
	}{
		{"each key once", asBatch, []string{"a", "b", ".", "c", ".", "d"}, 0, 0},
		{"one key", asBatch, []string{"a", "a", "a"}, 1, 3},
		{"some and some", asBatch, []string{"a", "b", ".", "c", "a", "d", "c", ".", "a"}, 1, 5},
		{"more than a round trip takes", asBatch, append(slices.Repeat([]string{"."}, 600), "a"), 0, 0},
		{"a key of two round trips", asBatch, slices.Concat([]string{"a"}, slices.Repeat([]string{"."}, 600), []string{"a"}), 2, 2},
		{"one message by Publish", byPublish, []string{"a"}, 0, 0},
		{"several by Publish", byPublish, []string{"a", ".", "b"}, 1, 3},
	} {
		t.Run(batch.name, func(t *testing.T) {
			var msgs []*message.Message
			for i, key := range batch.keys {
				msgs = append(msgs, keyed(strings.Trim(key, "."), number(i)))
			}
			scripts, grouped, lone := 0, 0, []string(nil)
			for _, line := range commands(t, c, func() { require.NoError(t, batch.send(msgs)) }) {
				switch {
				case strings.Contains(line, `"evalsha"`):
					scripts++
				case strings.Contains(line, " lua] \"XADD\""):
					grouped++
				case strings.Contains(line, `"xadd"`):
					lone = append(lone, strings.Split(line, `"`)[9])
				}
			}
			require.Equal(t, batch.scripts, scripts)
			require.Equal(t, batch.grouped, grouped)
			require.Len(t, lone, len(msgs)-grouped)
			require.True(t, slices.IsSorted(lone), "as given: %v", lone)
		})
	}
}

func TestMemoryThatComesAndGoesLeavesEachLoneMessageItsOwnAnswer(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c, p := client(t, server.URL), publisher(t, quick(server.URL))
	stop := comesAndGoes(t, c, "maxmemory")
	var stored []string
	mixed, sent := 0, 0
	for end := time.Now().Add(stall); mixed < 10 && time.Now().Before(end); {
		var msgs []*message.Message
		for range 700 { // more than a round trip takes
			key := fmt.Sprint("key", sent)
			if sent%5 == 0 {
				key = ""
			}
			msgs = append(msgs, keyed(key, number(sent)))
			sent++
		}
		before := len(stored)
		for i, err := range p.PublishBatch(t.Context(), batchTo("s", len(msgs)), msgs) {
			require.Empty(t, reasonOf(err), err)
			if err == nil {
				stored = append(stored, msgs[i].UUID)
			} else {
				require.ErrorContains(t, err, "OOM")
			}
		}
		if n := len(stored) - before; n > 0 && n < len(msgs) {
			mixed++
		}
	}
	stop()
	require.Equal(t, 10, mixed, "batches of which a part was stored")
	require.Equal(t, stored, uuids(t, c, "s"), "just what was said to be stored is there, once and as given")
}

// A server that says that it is not ready is asked again by go-redis, with all that went with the first command that
// was answered so, also what was stored: it is there twice.
func TestReplicasThatComeAndGoLeaveFirstDeliveriesOfLoneMessagesInOrder(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c, p := client(t, server.URL), publisher(t, quick(server.URL))
	stop := comesAndGoes(t, c, "min-replicas-to-write")
	var keys []string
	for i := range 500 {
		keys = append(keys, fmt.Sprintf("%03d-", i))
	}
	n, rounds := 20, 0
	forward(t, p, "s", keys, n, 1, func(int) { rounds++ })
	stop()
	requireFirstsInOrder(t, uuids(t, c, "s"), keys, n)
	require.Greater(t, rounds, n, "a replica was never missed: the test shows nothing")
}

// Each message is the only one of its key in its batch, and large, so that a cut comes in the middle.
func TestCutConnectionsAndLostRepliesLeaveFirstDeliveriesOfLoneMessagesInOrder(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	for _, clients := range []struct{ name, options string }{{"that repeat", ""}, {"that do not", "?max_retries=-1"}} {
		t.Run(clients.name, func(t *testing.T) {
			t.Parallel()
			topic := testenv.RedisPrefix(t) + "s"
			between, over := through(t, server)
			cfg := quick(over + clients.options)
			cfg.Timeout = 500 * time.Millisecond
			p := publisher(t, cfg)
			n := 40
			if testenv.Full() {
				n = 200
			}
			var keys []string
			for i := range 50 {
				keys = append(keys, fmt.Sprintf("%02d%s", i, strings.Repeat("x", 1000)))
			}
			var cuts sync.WaitGroup
			rounds := 0
			forward(t, p, topic, keys, n, 1, func(round int) {
				rounds++
				switch round % 4 {
				case 1: // the replies of this batch do not arrive
					between.BlackholeReplies(true)
					cuts.Go(func() { <-time.After(20 * time.Millisecond); between.Cut(); between.BlackholeReplies(false) })
				case 2: // all of the batch does, but only the first replies do
					between.OnBytes(true, []byte(keys[49]), func() { between.OnBytes(false, []byte("$"), between.Cut) })
				case 3: // half of the batch does
					between.OnBytes(true, []byte(keys[25]), between.Cut)
				}
			})
			cuts.Wait()
			ids := uuids(t, client(t, server), topic)
			requireFirstsInOrder(t, ids, keys, n)
			require.Greater(t, len(ids), n*len(keys), "no reply was lost: the test shows nothing")
		})
	}
}
