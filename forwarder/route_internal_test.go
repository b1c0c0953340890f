package forwarder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestNewReportsEverythingThatIsWrongWithRoutesAtOnce(t *testing.T) {
	t.Parallel()
	src, pub := memorySource{outboxtest.NewMemory()}, &broker{}
	_, err := New(src, nil, Config{
		Destination: "main", Exclude: []string{"legacy.#", "b*d"},
		Routes: []Route{
			{Name: "", Topics: []string{"a"}, Publisher: pub},
			{Name: "main", Topics: []string{"b"}, Publisher: pub},
			{Name: "x", Topics: []string{"c..d", ""}, Publisher: pub},
			{Name: "x", Topics: []string{"e"}, Publisher: pub},
			{Name: "y", Publisher: pub, OnFailure: 9, MaxAttempts: -1},
			{Name: "z", Topics: []string{"f"}},
			{Name: "late", Topics: []string{"g.#", "g.h", "legacy.orders"}, Publisher: pub},
			{Name: "*", Topics: []string{"i"}, Publisher: pub},
		},
	})
	for _, want := range []string{
		"b*d", "Config.Routes[0]", "Name is missing", `Config.Routes[1] ("main"): another`, "empty word", "the pattern is empty",
		`Config.Routes[3] ("x"): another`, "Topics is empty", "OnFailure is 9", "MaxAttempts and Batches", `Config.Routes[5] ("z"): Publisher is nil`,
		`"g.h" is never reached`, `"legacy.orders" is never reached`, "reserved",
	} {
		require.ErrorContains(t, err, want)
	}
	_, err = New(src, nil, Config{Routes: []Route{{Name: "x", Topics: []string{"a.#"}, Publisher: pub}}})
	require.NoError(t, err, "routes may be all there is")
	_, err = New(src, pub, Config{Routes: []Route{{Name: "x", Topics: []string{"a.#"}}}})
	require.NoError(t, err, "a route may change no more than the policy")
}

// fillTopic inserts count messages of a topic over so many keys; ids are topic.key-number.
func fillTopic(store *outboxtest.Memory, topic string, count, keys int) {
	for i := range count {
		key := fmt.Sprintf("%s.k%d", topic, i%keys)
		store.Insert(outboxtest.Entry{ID: fmt.Sprintf("%s-%06d", key, i), Topic: topic, Key: key, Body: []byte("x")})
	}
}

func topicsOf(b *broker) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var topics []string
	for _, s := range b.got {
		if !slices.Contains(topics, s.topic) {
			topics = append(topics, s.topic)
		}
	}
	slices.Sort(topics)
	return topics
}

func TestATopicGoesToTheFirstRouteThatMatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		topics := []string{"orders.placed", "orders.paid", "orders.archive.old", "mail", "legacy.x", "other"}
		for _, topic := range topics {
			fillTopic(store, topic, 30, 5)
		}
		audit, orders, mail, rest := &broker{}, &broker{}, &broker{}, &broker{}
		f, _, stop := start(t, store, rest, Config{
			Exclude: []string{"legacy.#"},
			Routes: []Route{
				{Name: "audit", Topics: []string{"#.archive.#"}, Publisher: audit},
				{Name: "orders", Topics: []string{"orders.#"}, Publisher: orders},
				{Name: "mail", Topics: []string{"mail"}, Publisher: mail},
			},
		})
		until(t, 5*time.Second, "all sent", func() bool { return len(store.Waiting()) == 30 })
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"orders.archive.old"}, topicsOf(audit))
		require.Equal(t, []string{"orders.paid", "orders.placed"}, topicsOf(orders))
		require.Equal(t, []string{"mail"}, topicsOf(mail))
		require.Equal(t, []string{"other"}, topicsOf(rest))
		for _, row := range store.Waiting() {
			require.Equal(t, "legacy.x", row.Topic, "an excluded topic is left to its reader")
		}
		for _, b := range []*broker{audit, orders, mail, rest} {
			_, duplicates := requireOrder(t, b.ids())
			require.Zero(t, duplicates)
		}
		st := f.Stats()
		require.Equal(t, int64(150), st.Settled)
		require.Equal(t, "orders", st.Destinations[1].Name)
		require.Equal(t, int64(60), st.Destinations[1].Published)
		require.Equal(t, "orders.paid", st.Destinations[1].Topics[0].Topic)
		require.Equal(t, int64(30), st.Destinations[1].Topics[0].Settled)
		require.NoError(t, stop())
	})
}

func TestATopicWithoutARouteIsRefusedAndParked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fillTopic(store, "unknown", 100, 100)
		fillTopic(store, "orders", 100, 10)
		orders := &broker{}
		f, _, stop := start(t, store, nil, Config{MaxAttempts: 3, Routes: []Route{{Name: "orders", Topics: []string{"orders"}, Publisher: orders}}})
		until(t, 2*time.Second, "the good ones sent", func() bool { return len(orders.ids()) == 100 })
		until(t, time.Minute, "the others parked", func() bool { return len(store.Dead()) == 100 })
		for _, dead := range store.Dead() {
			require.Equal(t, "no_route", dead.Why.Reason)
			require.Equal(t, 3, dead.Why.Attempt)
			require.Contains(t, dead.Why.Error, `"unknown"`)
		}
		require.NoError(t, f.Health(t.Context()), "it is nobody's fault but the messages'")
		require.NoError(t, stop())
	})
}

// counting counts the operations of a store. The fake's own steps within one are none of the total.
func counting(store *outboxtest.Memory) func(op string) int {
	var mu sync.Mutex
	counts := map[string]int{}
	store.Intercept(func(op string) error {
		mu.Lock()
		defer mu.Unlock()
		counts[op]++
		if op != "Judge" && op != "Compensate" {
			counts[""]++
		}
		return nil
	})
	return func(op string) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[op]
	}
}

// many is a configuration with n destinations, for topics d0, d1 ...
func many(n int, pub func(i int) message.Publisher) Config {
	var cfg Config
	for i := range n {
		name := fmt.Sprintf("d%d", i)
		cfg.Routes = append(cfg.Routes, Route{Name: name, Topics: []string{name + ".#"}, Publisher: pub(i)})
	}
	return cfg
}

func TestAQuietOutboxIsAskedOnceForAllDestinations(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 10} {
		t.Run(fmt.Sprintf("%d routes", n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := outboxtest.NewMemory()
				count := counting(store)
				_, wake, stop := start(t, store, &broker{}, many(n, func(int) message.Publisher { return &broker{} }))
				time.Sleep(10 * time.Second)
				before, topics := count(""), count("Topics")
				time.Sleep(100 * time.Second)
				require.LessOrEqual(t, count("Topics")-topics, 101)
				require.Less(t, count("")-before, 400, "fewer than four statements a second")
				require.Zero(t, count("Read"))

				// One message: only its own destination reads, and the others ask together whether there is something for them.
				topics, reads := count("Topics"), count("Read")
				store.Insert(outboxtest.Entry{ID: "1", Topic: "d3.x", Key: "k"})
				wake.ring(1 << outbox.Lane("k"))
				time.Sleep(2 * coolDown)
				synctest.Wait()
				require.Empty(t, store.Waiting())
				require.LessOrEqual(t, count("Read")-reads, 2)
				require.LessOrEqual(t, count("Topics")-topics, 2)
				require.NoError(t, stop())
			})
		})
	}
}

func TestADeadOrSlowDestinationLeavesTheOthersAsTheyWere(t *testing.T) {
	t.Parallel()
	for name, pub := range map[string]func(stop <-chan struct{}) message.Publisher{
		"refuses connections": func(<-chan struct{}) message.Publisher {
			return &broker{answer: func(*message.Message) error { return errDown }}
		},
		"never answers": func(<-chan struct{}) message.Publisher { return &broker{latency: time.Hour} },
		"is slow":       func(<-chan struct{}) message.Publisher { return &broker{latency: 5 * time.Second} },
		"does not return": func(stop <-chan struct{}) message.Publisher {
			block := make(chan struct{})
			go func() { <-stop; close(block) }()
			return &plainBroker{block: block}
		},
		"refuses everything": func(<-chan struct{}) message.Publisher { return &broker{answer: refusing("", "channel_closed")} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := outboxtest.NewMemory()
				fillTopic(store, "bad", 1000, 100) // 600 are read ahead
				ended := make(chan struct{})
				defer close(ended)
				good := &broker{latency: 5 * time.Millisecond}
				f, _, stop := start(t, store, good, Config{
					BatchRows: 100, Routes: []Route{{Name: "bad", Topics: []string{"bad"}, Publisher: pub(ended)}},
				})
				time.Sleep(100 * time.Second) // it is known to be bad by now
				fillTopic(store, "good", 1000, 100)
				began := time.Now()
				until(t, 10*time.Second, "the good ones sent", func() bool { return f.Stats().Destinations[1].Settled == 1000 })
				// One message of a key at a time: ten rounds of 5 ms, and a poll.
				require.Less(t, time.Since(began), 3*time.Second)
				_, duplicates := requireOrder(t, good.ids())
				require.Zero(t, duplicates)
				require.Equal(t, 64, f.Stats().Lanes, "nobody else is there to take the lanes")
				require.Empty(t, store.Dead())
				_ = stop()
			})
		})
	}
}

func TestARouteHasItsOwnPolicyForAFailingMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		for i := range 20 {
			for _, topic := range []string{"audit", "orders"} {
				store.Insert(outboxtest.Entry{ID: fmt.Sprintf("%s-%06d", topic, i), Topic: topic, Key: "k"})
			}
		}
		pub := &broker{answer: func(m *message.Message) error {
			if strings.HasSuffix(m.UUID, "-000000") {
				return refusedError{"too_large"}
			}
			return nil
		}}
		_, _, stop := start(t, store, pub, Config{
			RetryBase: time.Hour, RetryMax: time.Hour, MaxAttempts: 5,
			Routes: []Route{
				{Name: "audit", Topics: []string{"audit"}, OnFailure: SkipKey},
				{Name: "metrics", Topics: []string{"metrics"}, MaxAttempts: 1},
			},
		})
		until(t, 5*time.Second, "the rest of the topic that skips sent", func() bool { return len(pub.ids()) == 19 })
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"audit"}, topicsOf(pub), "the other one waits for its first message")
		pub.set(refusing("", "too_large"))
		store.Insert(outboxtest.Entry{ID: "m", Topic: "metrics"})
		until(t, 5*time.Second, "parked at once", func() bool { return len(store.Dead()) == 1 })
		require.NoError(t, stop())
	})
}

func TestLanesAreHandedOverOnlyWhenNoDestinationHasSomethingInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		fillTopic(store, "slow", 200, 100)
		slow, fast := &broker{latency: 3 * time.Second}, &broker{}
		cfg := Config{Routes: []Route{{Name: "slow", Topics: []string{"slow"}, Publisher: slow}}}
		f, _, stop := start(t, store, fast, cfg)
		until(t, 5*time.Second, "in flight", func() bool { return f.Stats().Flying > 50 })
		_, _, stop2 := start(t, store, fast, cfg)
		until(t, 30*time.Second, "shared", func() bool { return f.Stats().Lanes == 32 })
		until(t, time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
		_, duplicates := requireOrder(t, slow.ids())
		require.Zero(t, duplicates, "what was in flight was waited for")
		require.NoError(t, stop())
		require.NoError(t, stop2())
	})
}

func TestTheCrashCountIsResetWhenEveryDestinationIsThroughItsFirstRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.SetCrashes(2)
		fillTopic(store, "slow", 3, 3)
		fillTopic(store, "good", 100, 10)
		slow, good := &broker{answer: func(*message.Message) error { return errDown }}, &broker{}
		_, _, stop := start(t, store, good, Config{Routes: []Route{
			{Name: "slow", Topics: []string{"slow"}, Publisher: slow},
			{Name: "idle", Topics: []string{"idle"}, Publisher: &broker{}},
		}})
		until(t, 30*time.Second, "the good ones sent", func() bool { return len(good.ids()) == 100 })
		time.Sleep(10 * time.Second)
		require.Equal(t, 2, store.Crashes(), "some lanes are not through")
		slow.set(nil)
		until(t, time.Minute, "all sent", func() bool { return len(store.Waiting()) == 0 })
		until(t, 10*time.Second, "calm", func() bool { return store.Crashes() == 0 })
		require.NoError(t, stop())
	})
}

func TestAQuietOutboxIsCalmAfterACrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := outboxtest.NewMemory()
		store.SetCrashes(2)
		_, _, stop := start(t, store, &broker{}, Config{Routes: []Route{{Name: "x", Topics: []string{"x"}, Publisher: &broker{}}}})
		until(t, 10*time.Second, "calm", func() bool { return store.Crashes() == 0 })
		require.NoError(t, stop())
	})
}

func TestAMisconfiguredPublisherOfARouteEndsRunWithItsName(t *testing.T) {
	t.Parallel()
	bad := &misconfigured{}
	f, err := New(memorySource{outboxtest.NewMemory()}, &broker{}, Config{Routes: []Route{
		{Name: "reports", Topics: []string{"reports"}, Publisher: bad}, {Name: "mail", Topics: []string{"mail"}, Publisher: bad},
	}})
	require.NoError(t, err)
	err = f.Run(context.WithoutCancel(t.Context()))
	require.ErrorContains(t, err, `"reports"`)
	require.NotContains(t, err.Error(), `"mail"`, "the same publisher is asked once")
	require.True(t, errors.Is(err, setupProblem{}))
}
