package middleware_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/confirmation"
	"github.com/millrace-go/millrace/internal/meta"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

const words = "orders.confirmations"

// asking is a message whose producer waits for confirmations.
func asking(t testing.TB, id string) *message.Message {
	m := delivery(t.Context(), id, "payload")
	m.Metadata[meta.Confirm] = words
	return m
}

// said lists what was confirmed, as "outcome of message by group".
func said(t testing.TB, msgs []*message.Message) (all []string) {
	t.Helper()
	for _, m := range msgs {
		c, err := confirmation.Parse(m.Payload)
		require.NoError(t, err)
		all = append(all, fmt.Sprintf("%s %s by %s", c.ID, c.Outcome, c.Group))
	}
	return all
}

func works(*message.Message) ([]*message.Message, error) { return nil, nil }
func fails(*message.Message) ([]*message.Message, error) { return nil, errHandler }

func TestAMessageIsConfirmedWhenItsHandlerHasSucceeded(t *testing.T) {
	t.Parallel()
	pub := &memoryPublisher{}
	confirm := must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub}))
	_, err := chain(fails, confirm)(asking(t, "m"))
	require.ErrorIs(t, err, errHandler)
	require.Empty(t, pub.on(words))

	_, err = chain(works, confirm)(asking(t, "m"))
	require.NoError(t, err)
	require.Equal(t, []string{"m done by billing"}, said(t, pub.on(words)))

	_, err = chain(works, confirm)(delivery(t.Context(), "nobody asked", ""))
	require.NoError(t, err)
	require.Len(t, pub.on(words), 1)

	other := must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Topic: "mine"}))
	_, err = chain(works, other)(asking(t, "n"))
	require.NoError(t, err)
	require.Len(t, pub.on("mine"), 1)
}

func TestAnUnconfirmedMessageIsNackedAndConfirmedWithoutItsHandlerLater(t *testing.T) {
	t.Parallel()
	pub := &memoryPublisher{down: true}
	runs := 0
	h := chain(func(*message.Message) ([]*message.Message, error) { runs++; return nil, nil },
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: pub, Topic: "poison"})),
		must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub})),
		must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "billing"})))
	_, err := h(asking(t, "m"))
	require.ErrorIs(t, err, errDown)
	pub.mu.Lock()
	pub.down = false
	pub.mu.Unlock()
	for range 2 {
		_, err = h(asking(t, "m"))
		require.NoError(t, err)
	}
	require.Equal(t, 1, runs)
	require.Empty(t, pub.on("poison"), "an outage says nothing about the message")
	require.Equal(t, []string{"m done by billing", "m done by billing"}, said(t, pub.on(words)), "a duplicate confirms again")
}

func TestTheProducerHearsOfAMessageThatWasGivenUp(t *testing.T) {
	t.Parallel()
	pub := &memoryPublisher{}
	h := chain(fails,
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: pub, Topic: "poison"})),
		must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub})),
		must(t)(middleware.Idempotent(new(dedup.Memory), middleware.IdempotentConfig{Consumer: "billing"})))
	_, err := h(asking(t, "m"))
	require.NoError(t, err)
	require.Len(t, pub.on("poison"), 1)
	require.Equal(t, []string{"m failed by billing"}, said(t, pub.on(words)))
}

func TestAConfirmationIsSignedWithTheKey(t *testing.T) {
	t.Parallel()
	pub, key := &memoryPublisher{}, []byte(strings.Repeat("k", 32))
	for _, handler := range []message.HandlerFunc{works, fails} {
		h := chain(handler,
			must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: pub, Topic: "poison"})),
			must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Key: key})))
		_, err := h(asking(t, "m"))
		require.NoError(t, err)
	}
	require.Len(t, pub.on(words), 2)
	for _, m := range pub.on(words) {
		c, err := confirmation.Parse(m.Payload)
		require.NoError(t, err)
		require.True(t, c.SignedBy(key))
	}
	_, err := middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Key: []byte("short")})
	require.ErrorContains(t, err, "Key has 5 bytes")
}

func TestAConfirmationNamesTheSendingThatItAnswers(t *testing.T) {
	t.Parallel()
	pub := &memoryPublisher{}
	for _, handler := range []message.HandlerFunc{works, fails} {
		h := chain(handler,
			must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: pub, Topic: "poison"})),
			must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub})),
			func(next message.HandlerFunc) message.HandlerFunc {
				return func(msg *message.Message) ([]*message.Message, error) {
					defer msg.Metadata.Set(meta.Sending, "77") // a handler may change its message
					return next(msg)
				}
			})
		for _, sending := range []string{"", "3", "none"} {
			m := asking(t, "m")
			if sending != "" {
				m.Metadata[meta.Sending] = sending
			}
			_, err := h(m)
			require.NoError(t, err)
		}
	}
	var answers []string
	for _, m := range pub.on(words) {
		c, err := confirmation.Parse(m.Payload)
		require.NoError(t, err)
		answers = append(answers, fmt.Sprint(c.Outcome, c.Sending))
	}
	require.Equal(t, []string{"done1", "done3", "done0", "failed1", "failed3", "failed0"}, answers)
}

func TestAConfirmationIsCommittedWithItsEffectOrNotAtAll(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t testing.TB) *database{
		"postgres": func(t testing.TB) *database { return openDatabase(t, "pgx", testenv.Postgres(t)) },
		"mariadb":  func(t testing.TB) *database { return openDatabase(t, "mysql", testenv.MariaDB(t)) },
		"sqlite":   sqliteDatabase,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			pub := &memoryPublisher{}
			fail := true
			h := chain(func(msg *message.Message) ([]*message.Message, error) {
				if err := d.effect(msg.Context(), msg.UUID); err != nil || fail {
					return nil, errHandler
				}
				return nil, nil
			},
				must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Outbox: d.box.Publisher()})),
				must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "billing"})))
			confirmed := func() int {
				return d.count(t, `SELECT count(*) FROM millrace_outbox WHERE topic = '`+words+`'`)
			}
			_, err := h(asking(t, "m"))
			require.ErrorIs(t, err, errHandler)
			require.Zero(t, confirmed())

			fail = false
			_, err = h(asking(t, "m"))
			require.NoError(t, err)
			require.Equal(t, 1, confirmed())
			require.Empty(t, pub.on(words))

			_, err = h(asking(t, "m"))
			require.NoError(t, err)
			require.Equal(t, 1, d.count(t, `SELECT count(*) FROM effects`))
			require.Equal(t, []string{"m done by billing"}, said(t, pub.on(words)), "a duplicate confirms again, directly")
		})
	}
}

// slowBatches is a publisher of batches that waits before it answers.
type slowBatches struct {
	memoryPublisher
	gate chan struct{}
	mu   sync.Mutex

	confirmed int
}

func (s *slowBatches) PublishBatch(_ context.Context, _ []string, msgs []*message.Message) []error {
	<-s.gate
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range msgs {
		s.confirmed += len(confirmation.ParseAll(m.Payload, nil))
	}
	return make([]error, len(msgs))
}

func TestAConfirmationThatTakesTooLongIsGivenUp(t *testing.T) {
	t.Parallel()
	batches, alone := &slowBatches{gate: make(chan struct{})}, make(stuck)
	defer close(batches.gate)
	defer close(alone)
	for _, pub := range []message.Publisher{batches, alone} {
		h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Timeout: 10 * time.Millisecond})))
		_, err := h(asking(t, "m"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
}

func TestConfirmReportsWhatIsWrongWithItsConfiguration(t *testing.T) {
	t.Parallel()
	_, err := middleware.Confirm(middleware.ConfirmConfig{Timeout: -1})
	for _, want := range []string{"Group", "Publisher", "Timeout"} {
		require.ErrorContains(t, err, want)
	}
}

func TestAConfirmationInTheBackgroundDoesNotHoldTheMessageUp(t *testing.T) {
	t.Parallel()
	pub := &slowBatches{gate: make(chan struct{})}
	h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Background: true})))
	for i := range 50 {
		_, err := h(asking(t, fmt.Sprint(i)))
		require.NoError(t, err)
	}
	close(pub.gate)
	testenv.Eventually(t, 30*time.Second, "all are confirmed", func() bool {
		pub.mu.Lock()
		defer pub.mu.Unlock()
		return pub.confirmed == 50
	})
}

// A shutdown waits for the handlers, and they must not wait for a broker that is away.
func TestAMessageThatFindsNoRoomInTheBackgroundIsNackedWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	pub := &slowBatches{gate: make(chan struct{})}
	open := sync.OnceFunc(func() { close(pub.gate) })
	defer open()
	h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Background: true, Timeout: time.Hour})))
	confirm := func(ctx context.Context) error {
		m := asking(t, "m")
		m.SetContext(ctx)
		_, err := h(m)
		return err
	}
	const room = 1000
	for range room {
		require.NoError(t, confirm(t.Context()))
	}
	ending, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- confirm(ending) }()
	end()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(30 * time.Second):
		t.Fatal("it waits, though its context has ended")
	}

	open()
	confirmed := func() int {
		pub.mu.Lock()
		defer pub.mu.Unlock()
		return pub.confirmed
	}
	testenv.Eventually(t, 30*time.Second, "those before it are confirmed", func() bool { return confirmed() == room })
	require.NoError(t, confirm(t.Context()), "it came again")
	testenv.Eventually(t, 30*time.Second, "and so is it", func() bool { return confirmed() == room+1 })
}

// stuck is a publisher that answers to nothing.
type stuck chan struct{}

func (s stuck) Publish(string, ...*message.Message) error { <-s; return nil }
func (s stuck) Close() error                              { return nil }

func TestAMessageWaitsForRoomInTheBackgroundNoLongerThanTimeout(t *testing.T) {
	t.Parallel()
	pub := make(stuck)
	defer close(pub)
	h := chain(works, must(t)(middleware.Confirm(middleware.ConfirmConfig{Group: "billing", Publisher: pub, Background: true, Timeout: 10 * time.Millisecond})))
	for range 1000 {
		_, err := h(asking(t, "m"))
		require.NoError(t, err)
	}
	_, err := h(asking(t, "m"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
