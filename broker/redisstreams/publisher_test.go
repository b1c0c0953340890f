package redisstreams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/redisstreams"
	"github.com/millrace-go/millrace/internal/testenv"
)

// keyed makes a message whose id is also its payload.
func keyed(key, id string) *message.Message {
	msg := message.NewMessage(id, []byte(id))
	if key != "" {
		msg.Metadata.Set("millrace_key", key)
	}
	return msg
}

func batchTo(topic string, n int) []string {
	topics := make([]string, n)
	for i := range topics {
		topics[i] = topic
	}
	return topics
}

// uuids lists the ids of what is in the stream.
func uuids(t testing.TB, c *redis.Client, stream string) []string {
	t.Helper()
	entries, err := c.XRange(context.Background(), stream, "-", "+").Result()
	require.NoError(t, err)
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i], _ = e.Values[wmredis.UUIDHeaderKey].(string)
	}
	return ids
}

// reasonOf is the reason of a refusal, "" if err is none.
func reasonOf(err error) string {
	var r interface {
		Refused() bool
		Reason() string
	}
	if errors.As(err, &r) && r.Refused() {
		return r.Reason()
	}
	return ""
}

func isSetup(err error) bool {
	var s interface{ Setup() bool }
	return errors.As(err, &s) && s.Setup()
}

func TestAllThatIsWrongWithAConfigurationIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	_, err := redisstreams.NewPublisher(redisstreams.Config{MaxIdle: -1, Concurrency: -1, Block: time.Minute, MaxMessageBytes: -1})
	for _, what := range []string{"Client or URL", "MaxIdle", "Concurrency", "Block", "MaxMessageBytes"} {
		require.ErrorContains(t, err, what)
	}
	slow := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", ReadTimeout: 100 * time.Millisecond})
	defer slow.Close()
	_, err = redisstreams.NewSubscriber(redisstreams.Config{Client: slow, Block: 200 * time.Millisecond})
	require.ErrorContains(t, err, "ReadTimeout")

	_, err = redisstreams.NewSubscriber(redisstreams.Config{URL: "redis://u:canary%zz@host"})
	require.ErrorContains(t, err, "URL")
	require.NotContains(t, err.Error(), "canary")
}

func TestTheStockPiecesMayStandAtTheOtherEnd(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "mixed"
	stock, err := wmredis.NewPublisher(wmredis.PublisherConfig{Client: client(t, url)}, nil)
	require.NoError(t, err)
	ours := publisher(t, quick(url))
	require.NoError(t, stock.Publish(topic, keyed("k", "from stock")))
	require.NoError(t, ours.Publish(topic, keyed("k", "from ours")))

	cfg := quick(url)
	cfg.ConsumerGroup = "ours"
	out, err := subscriber(t, cfg).Subscribe(t.Context(), topic)
	require.NoError(t, err)
	theirs, err := wmredis.NewSubscriber(wmredis.SubscriberConfig{
		Client: client(t, url), ConsumerGroup: "stock", DisableIndefiniteInitialBlock: true,
	}, nil)
	require.NoError(t, err)
	defer theirs.Close()
	out2, err := theirs.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	for _, messages := range []<-chan *message.Message{out, out2} {
		for _, want := range []string{"from stock", "from ours"} {
			msg := receive(t, messages)
			require.Equal(t, want, msg.UUID)
			require.Equal(t, want, string(msg.Payload))
			require.Equal(t, "k", msg.Metadata.Get("millrace_key"))
			msg.Ack()
		}
	}
}

func TestAKeyStopsAtItsFirstFailureAndOthersGoOn(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	topic := testenv.RedisPrefix(t) + "s"
	cfg := quick(url)
	cfg.MaxMessageBytes = 1000
	p := publisher(t, cfg)

	// More than one round trip: the second must know what failed in the first.
	var msgs []*message.Message
	for i := range 1200 {
		key := []string{"stopped", "free", ""}[i%3]
		msgs = append(msgs, keyed(key, number(i)))
	}
	msgs[300].Payload = bytes.Repeat([]byte("x"), 1000) // i%3 == 0: of the stopped key
	errs := p.PublishBatch(t.Context(), batchTo(topic, len(msgs)), msgs)
	want := make(map[string][]string)
	for i, err := range errs {
		switch key := msgs[i].Metadata.Get("millrace_key"); {
		case i == 300:
			require.Equal(t, "too_large", reasonOf(err))
		case i > 300 && i%3 == 0:
			require.Error(t, err)
			require.Empty(t, reasonOf(err), "what was not sent is not refused")
		default:
			require.NoError(t, err)
			want[key] = append(want[key], number(i))
		}
	}
	got := make(map[string][]string)
	for _, id := range uuids(t, client(t, url), topic) {
		i, err := strconv.Atoi(id)
		require.NoError(t, err)
		key := msgs[i].Metadata.Get("millrace_key")
		got[key] = append(got[key], id)
	}
	require.Equal(t, want, got, "in order, also those without a key")
}

func TestEachStreamOfABatchAnswersForItself(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	prefix := testenv.RedisPrefix(t)
	c := client(t, url)
	require.NoError(t, c.Set(t.Context(), prefix+"string", "x", 0).Err())
	p := publisher(t, quick(url))
	for _, batch := range []struct{ topics, keys string }{
		{"asbsa", "kkk k"}, // those of the string are alone in their keys
		{"sssss", "kkk x"}, // or not
		{"basssb", "kkkklk"},
		{"sab", "kkk"},
	} {
		var topics []string
		var msgs []*message.Message
		want := map[string][]string{}
		for i, name := range batch.topics {
			topic, id := prefix+string(name), fmt.Sprint(batch.topics, i)
			if name == 's' {
				topic = prefix + "string"
			} else {
				want[topic] = append(want[topic], id)
			}
			topics = append(topics, topic)
			msgs = append(msgs, keyed(strings.TrimSpace(batch.keys[i:i+1]), id))
		}
		for i, err := range p.PublishBatch(t.Context(), topics, msgs) {
			if batch.topics[i] == 's' {
				require.Equal(t, "wrong_type", reasonOf(err), err)
			} else {
				require.NoError(t, err)
			}
		}
		for topic, ids := range want {
			require.Equal(t, ids, uuids(t, c, topic))
			require.NoError(t, c.Del(t.Context(), topic).Err())
		}
	}
}

func TestAScriptThatTheServerForgotIsSentAgain(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c := client(t, server.URL)
	p := publisher(t, quick(server.URL))
	for i := range 3 {
		require.NoError(t, c.ScriptFlush(t.Context()).Err())
		var topics []string
		var msgs []*message.Message
		for _, topic := range []string{"a", "b"} {
			topics = append(topics, topic, topic, topic)
			msgs = append(msgs, keyed("k", number(2*i)), keyed("k", number(2*i+1)), keyed("", "alone"+number(i)))
		}
		require.NoError(t, errors.Join(p.PublishBatch(t.Context(), topics, msgs)...))
	}
	for _, topic := range []string{"a", "b"} {
		var ofKey []string
		ids := uuids(t, c, topic)
		for _, id := range ids {
			if !strings.HasPrefix(id, "alone") {
				ofKey = append(ofKey, id)
			}
		}
		require.Equal(t, []string{number(0), number(1), number(2), number(3), number(4), number(5)}, ofKey)
		require.Len(t, ids, 9, "what needs no script is sent once")
	}
}

func TestAMessageAboveTheServersLimitIsRefusedAndTheConnectionLives(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t, "--proto-max-bulk-len", "2mb")
	p := publisher(t, quick(server.URL))
	large := keyed("k", "large")
	large.Payload = make([]byte, 3<<20)
	fits := keyed("k2", "fits")
	fits.Payload = make([]byte, 1<<20+1)
	errs := p.PublishBatch(t.Context(), batchTo("s", 3), []*message.Message{keyed("", "a"), large, fits})
	require.NoError(t, errors.Join(errs[0], errs[2]))
	require.Equal(t, "too_large", reasonOf(errs[1]))
}

// Faults of the server are nobody's fault: they must not count as an attempt of a message.
func TestAFaultOfTheServerBlamesNoMessage(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c := client(t, server.URL)
	ctx := t.Context()
	require.NoError(t, c.Do(ctx, "ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-xadd").Err())
	require.NoError(t, publisher(t, quick(server.URL)).Publish("s", keyed("", "first")))
	for _, fault := range []struct {
		name, user string
		on, off    func() error
		setup      bool
	}{
		{"out of memory", "", set(c, "maxmemory", "1"), set(c, "maxmemory", "0"), false},
		{
			"read only", "",
			func() error { return c.Do(ctx, "REPLICAOF", "127.0.0.1", "1").Err() },
			func() error { return c.Do(ctx, "REPLICAOF", "NO", "ONE").Err() },
			false,
		},
		{"no permission", "poor:pw@", nil, nil, true},
		{"wrong password", "poor:canary@", nil, nil, true},
		{"frozen", "", func() error { server.Pause(); return nil }, func() error { server.Resume(); return nil }, false},
		{"down", "", func() error { server.Kill(); return nil }, func() error { server.Start(); return nil }, false},
	} {
		t.Run(fault.name, func(t *testing.T) {
			cfg := quick(strings.Replace(server.URL, "redis://", "redis://"+fault.user, 1))
			if fault.name == "frozen" {
				cfg.Timeout = time.Second
			}
			p := publisher(t, cfg)
			if fault.on != nil {
				require.NoError(t, fault.on())
			}
			errs := p.PublishBatch(t.Context(), batchTo("s", 3), []*message.Message{keyed("k", "1"), keyed("k", "2"), keyed("", "3")})
			if fault.off != nil {
				require.NoError(t, fault.off())
			}
			for _, err := range errs {
				require.Error(t, err)
				require.Empty(t, reasonOf(err), err)
				require.Equal(t, fault.setup, isSetup(err), err)
				require.NotContains(t, err.Error(), "canary")
			}
		})
	}
	// What was on its way when the server froze may have arrived; refused entries have not.
	for _, id := range uuids(t, c, "s") {
		require.Contains(t, []string{"first", "1", "2", "3"}, id)
	}
}

func set(c *redis.Client, name, value string) func() error {
	return func() error { return c.ConfigSet(context.Background(), name, value).Err() }
}

func TestTheCallersClientIsNeverClosed(t *testing.T) {
	t.Parallel()
	c := client(t, testenv.Redis(t))
	p, err := redisstreams.NewPublisher(redisstreams.Config{Client: c})
	require.NoError(t, err)
	s, err := redisstreams.NewSubscriber(redisstreams.Config{Client: c, ConsumerGroup: "g"})
	require.NoError(t, err)
	out, err := s.Subscribe(t.Context(), testenv.RedisPrefix(t)+"s")
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.NoError(t, s.Close())
	_, open := <-out
	require.False(t, open)
	require.NoError(t, c.Ping(t.Context()).Err())
}

func TestCheckTellsWhatToMend(t *testing.T) {
	t.Parallel()
	server := testenv.OwnRedis(t)
	c := client(t, server.URL)
	p := publisher(t, quick(server.URL))
	require.NoError(t, p.Check(t.Context()))

	require.NoError(t, set(c, "maxmemory-policy", "allkeys-lru")())
	require.NoError(t, p.Check(t.Context()), "nothing is evicted without maxmemory")
	require.NoError(t, set(c, "maxmemory", "100mb")())
	err := p.Check(t.Context())
	require.True(t, isSetup(err))
	require.ErrorContains(t, err, "noeviction")

	// A server that does not tell is warned of, no more.
	require.NoError(t, c.Do(t.Context(), "ACL", "SETUSER", "managed", "on", ">pw", "~*", "+@all", "-config", "-info").Err())
	require.NoError(t, publisher(t, quick(strings.Replace(server.URL, "redis://", "redis://managed:pw@", 1))).Check(t.Context()))

	err = publisher(t, quick(strings.Replace(server.URL, "redis://", "redis://managed:canary@", 1))).Check(t.Context())
	require.True(t, isSetup(err))
	require.ErrorContains(t, err, "password")
	require.NotContains(t, err.Error(), "canary")
}
