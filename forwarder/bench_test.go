package forwarder_test

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// BenchmarkForward is what the forwarder itself does for one message: the store is a counter and the
// publisher says yes.
func BenchmarkForward(b *testing.B) {
	for _, keys := range []int{0, 10_000, 20} {
		b.Run(strconv.Itoa(keys)+" keys", func(b *testing.B) { benchmarkForward(b, keys) })
	}
}

func benchmarkForward(b *testing.B, keys int) {
	store := &counter{Memory: outboxtest.NewMemory(), total: int64(b.N), settled: make(chan struct{}), keys: make([]string, keys)}
	for i := range store.keys {
		store.keys[i] = "key-" + strconv.Itoa(i)
	}
	store.Insert(outboxtest.Entry{ID: "never-read", Topic: "t"}) // so that the topic is known
	fwd, err := forwarder.New(store, yes{}, forwarder.Config{})
	require.NoError(b, err)
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ReportAllocs()
	b.ResetTimer()
	go func() { ended <- fwd.Run(ctx) }()
	<-store.settled
	b.StopTimer()
	stop()
	require.NoError(b, <-ended)
}

// counter is an outbox of total messages that keeps none of them: only their number, and which are read.
type counter struct {
	*outboxtest.Memory
	keys  []string
	total int64

	mu      sync.Mutex
	last    int64
	gone    int64
	settled chan struct{}
}

var benchMetadata = message.Metadata{"event": "order.placed", "tenant": "t1", "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-01"}

func (c *counter) Store() outbox.Store             { return c }
func (*counter) Subscribe() (*outbox.Wake, func()) { return nil, func() {} }

func (c *counter) Read(_ context.Context, q outbox.Read) ([]outbox.Row, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	busy := make(map[string]bool, len(q.BusyKeys))
	for _, key := range q.BusyKeys {
		busy[key] = true
	}
	rows := make([]outbox.Row, 0, q.MaxRows)
	for len(rows) < q.MaxRows && c.last < c.total {
		row := outbox.Row{Topic: "t", Size: 1100, Metadata: maps.Clone(benchMetadata), Payload: benchPayload}
		if len(c.keys) > 0 {
			row.Key = c.keys[c.last%int64(len(c.keys))]
		}
		if busy[row.Key] {
			break
		}
		c.last++
		row.Pos, row.ID, row.Lane = c.last, "some-id", outbox.Lane(row.Key+strconv.FormatInt(c.last%64, 10))
		if row.Key != "" {
			row.Lane = outbox.Lane(row.Key)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (c *counter) Settle(_ context.Context, _ []outbox.Grant, refs []outbox.Ref) (outbox.Settled, error) {
	s := outbox.Settled{Done: make([]int64, len(refs))}
	for i, r := range refs {
		s.Done[i] = r.Pos
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone += int64(len(refs)); c.gone == c.total {
		close(c.settled)
	}
	return s, nil
}

var benchPayload = make([]byte, 1024)

// yes is a publisher for which everything is stored at once.
type yes struct{}

func (yes) Publish(string, ...*message.Message) error { return nil }
func (yes) Close() error                              { return nil }
func (yes) PublishBatch(_ context.Context, _ []string, msgs []*message.Message) []error {
	return make([]error, len(msgs))
}
