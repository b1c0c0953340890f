package middleware_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/middleware"
)

// flights is a publisher that lets calls wait for its gate, and fails those for the topic broken.
type flights struct {
	gate   chan struct{}
	broken string
	panics bool
	deaf   bool // to the end of a context

	mu    sync.Mutex
	calls int
	got   map[string][]*message.Message
}

func (f *flights) take(ctx context.Context, topics []string, msgs []*message.Message) []error {
	f.mu.Lock()
	f.calls++
	f.mu.Unlock()
	if f.deaf {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case <-f.gate:
	case <-ctx.Done():
	}
	if f.panics {
		panic("no broker")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make([]error, len(msgs))
	for i, topic := range topics {
		switch {
		case ctx.Err() != nil:
			errs[i] = ctx.Err()
		case topic == f.broken:
			errs[i] = errDown
		default:
			f.got[topic] = append(f.got[topic], msgs[i])
		}
	}
	return errs
}

func (f *flights) Publish(topic string, msgs ...*message.Message) error {
	return f.take(msgs[0].Context(), []string{topic}, msgs)[0]
}

func (f *flights) Close() error { return nil }

// inBatches is flights with many messages in one call.
type inBatches struct{ *flights }

func (f inBatches) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	return f.take(ctx, topics, msgs)
}

// begun is how many calls there were.
func (f *flights) begun() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// members is how many confirmations each message of a topic carries, sorted.
func (f *flights) members(topic string) (counts []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.got[topic] {
		counts = append(counts, len(confirmation.ParseAll(m.Payload, nil)))
	}
	slices.Sort(counts)
	return counts
}

// eachFlights runs a test with a publisher of each kind, in the time of a bubble.
func eachFlights(t *testing.T, test func(t *testing.T, f *flights, pub message.Publisher)) {
	for name, wrap := range map[string]func(f *flights) message.Publisher{
		"one by one": func(f *flights) message.Publisher { return f },
		"in batches": func(f *flights) message.Publisher { return inBatches{f} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &flights{gate: make(chan struct{}), got: map[string][]*message.Message{}}
				test(t, f, wrap(f))
			})
		})
	}
}

// confirming handles messages at the same time, and returns what became of each.
func confirming(t *testing.T, h message.HandlerFunc, topic string, ids ...string) (results func() map[string]error) {
	var mu sync.Mutex
	var work sync.WaitGroup
	errs := map[string]error{}
	for _, id := range ids {
		work.Go(func() {
			m := asking(t, id)
			m.Metadata[meta.Confirm] = topic
			_, err := h(m)
			mu.Lock()
			defer mu.Unlock()
			errs[id] = err
		})
	}
	synctest.Wait() // all are under way
	return func() map[string]error { work.Wait(); return errs }
}

// underWay has all calls under way that may be: what comes now gathers.
func underWay(t *testing.T, h message.HandlerFunc) {
	for _, id := range []string{"1", "2"} {
		confirming(t, h, "before", id)
	}
}

func numbered(prefix string, n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprint(prefix, i))
	}
	return ids
}

func TestConfirmationsMadeWhileOthersAreUnderWayTravelInOneMessageForEachTopic(t *testing.T) {
	t.Parallel()
	eachFlights(t, func(t *testing.T, f *flights, pub message.Publisher) {
		h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub})))
		first := confirming(t, h, "a", "first")
		require.Equal(t, 1, f.begun(), "one that is alone departs at once")
		second := confirming(t, h, "a", "second")
		require.Equal(t, 2, f.begun())
		as, bs := confirming(t, h, "a", numbered("a", 50)...), confirming(t, h, "b", numbered("b", 30)...)
		require.Equal(t, 2, f.begun(), "the others gather")
		close(f.gate)
		for _, results := range []func() map[string]error{first, second, as, bs} {
			for id, err := range results() {
				require.NoError(t, err, id)
			}
		}
		require.Equal(t, []int{1, 1, 50}, f.members("a"))
		require.Equal(t, []int{30}, f.members("b"))

		alone := slices.MinFunc(f.got["a"], func(a, b *message.Message) int { return len(a.Payload) - len(b.Payload) })
		c, err := confirmation.Parse(alone.Payload)
		require.NoError(t, err, "a single one is an object, as others write it")
		same, err := c.Message()
		require.NoError(t, err)
		require.Equal(t, same.UUID, alone.UUID)
		var heard []string
		for _, said := range confirmation.ParseAll(f.got["b"][0].Payload, nil) {
			require.NoError(t, said.Err)
			require.Equal(t, confirmation.Done, said.Outcome)
			require.Equal(t, "billing", said.Group)
			heard = append(heard, said.ID)
		}
		require.ElementsMatch(t, numbered("b", 30), heard)
	})
}

func TestAnErrorOfThePublisherReachesAllWhoTravelledTogether(t *testing.T) {
	t.Parallel()
	eachFlights(t, func(t *testing.T, f *flights, pub message.Publisher) {
		h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub})))
		underWay(t, h)
		lost, kept := confirming(t, h, "a", numbered("a", 20)...), confirming(t, h, "b", numbered("b", 20)...)
		f.broken = "a"
		close(f.gate)
		for id, err := range lost() {
			require.ErrorIs(t, err, errDown, id)
		}
		for id, err := range kept() {
			require.NoError(t, err, id)
		}
		require.Empty(t, f.members("a"))
		require.Equal(t, []int{20}, f.members("b"))
	})
}

func TestAMessageOfConfirmationsIsBoundedInNumberAndSize(t *testing.T) {
	t.Parallel()
	eachFlights(t, func(t *testing.T, f *flights, pub message.Publisher) {
		cfg := middleware.ConfirmConfig{Group: "billing", Publisher: pub, Key: bytes.Repeat([]byte("k"), 32)}
		small := chain(works, must(t)(middleware.Confirm(cfg)))
		underWay(t, small)
		results := confirming(t, small, "small", numbered("m", 600)...)
		close(f.gate)
		for id, err := range results() {
			require.NoError(t, err, id)
		}
		require.Equal(t, []int{88, 256, 256}, f.members("small"))

		cfg.Group = strings.Repeat("\x01", 100) // as JSON six times as long
		var ids []string
		for i := range 300 {
			ids = append(ids, fmt.Sprint(strings.Repeat("\x02", 60), i))
		}
		f.gate = make(chan struct{})
		large := chain(works, must(t)(middleware.Confirm(cfg)))
		underWay(t, large)
		results = confirming(t, large, "large", ids...)
		close(f.gate)
		for id, err := range results() {
			require.NoError(t, err, id)
		}
		require.Greater(t, len(f.got["large"]), 2)
		var heard []string
		for _, m := range f.got["large"] {
			require.LessOrEqual(t, len(m.Payload), confirmation.MaxJointBytes)
			for _, said := range confirmation.ParseAll(m.Payload, [][]byte{cfg.Key}) {
				require.NoError(t, said.Err, "each is signed for itself")
				heard = append(heard, said.ID)
			}
		}
		require.ElementsMatch(t, ids, heard)
	})
}

// A publisher that does not answer would else be given, when it does, all that came again and again meanwhile.
func TestAConfirmationThatNobodyWaitsForAnyMoreIsNotSent(t *testing.T) {
	t.Parallel()
	eachFlights(t, func(t *testing.T, f *flights, pub message.Publisher) {
		f.deaf = true
		h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Timeout: time.Minute})))
		underWay(t, h)
		early := confirming(t, h, "a", numbered("early", 10)...)
		time.Sleep(30 * time.Second)
		late := confirming(t, h, "a", numbered("late", 10)...)
		for id, err := range early() {
			require.ErrorIs(t, err, context.DeadlineExceeded, id)
		}
		close(f.gate)
		for id, err := range late() {
			require.NoError(t, err, id)
		}
		require.Equal(t, []int{10}, f.members("a"))
	})
}

func TestAPublisherThatPanicsFailsTheConfirmationsAndNothingElse(t *testing.T) {
	t.Parallel()
	eachFlights(t, func(t *testing.T, f *flights, pub message.Publisher) {
		f.panics = true
		close(f.gate)
		h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub})))
		for id, err := range confirming(t, h, "a", numbered("m", 10)...)() {
			require.ErrorContains(t, err, "panic: no broker", id)
		}
		f.panics = false
		for id, err := range confirming(t, h, "a", numbered("m", 10)...)() {
			require.NoError(t, err, id)
		}
	})
}

func TestConfirmationsInTheBackgroundTravelTogetherAndEachThatIsLostIsLogged(t *testing.T) {
	t.Parallel()
	eachFlights(t, func(t *testing.T, f *flights, pub message.Publisher) {
		var log bytes.Buffer
		h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{
			Group: "billing", Publisher: pub, Background: true, Timeout: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})))
		soon := func() { time.Sleep(15 * time.Millisecond); synctest.Wait() } // one linger, not two
		underWay(t, h)
		require.Zero(t, f.begun(), "they wait a moment for others")
		soon()
		require.Equal(t, 1, f.begun(), "and travel together")
		for id, err := range confirming(t, h, "a", numbered("m", 10)...)() {
			require.NoError(t, err, id)
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, f.begun(), "one call at a time")
		close(f.gate)
		soon()
		require.Equal(t, []int{2}, f.members("before"))
		require.Equal(t, []int{10}, f.members("a"))
		require.Zero(t, log.Len())

		confirming(t, h, "many", numbered("many", 2*confirmation.MaxJoint)...)()
		soon()
		require.Equal(t, []int{confirmation.MaxJoint, confirmation.MaxJoint}, f.members("many"))

		f.gate = make(chan struct{})
		underWay(t, h)
		soon()
		confirming(t, h, "a", numbered("n", 10)...)()
		time.Sleep(2*time.Minute + time.Second) // each call has its time
		synctest.Wait()
		require.Equal(t, 12, strings.Count(log.String(), "was not confirmed"))
		require.Equal(t, 10, strings.Count(log.String(), "message_id=n"))
		require.Equal(t, []int{10}, f.members("a"))
	})
}
