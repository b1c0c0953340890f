package brokertest

import (
	"context"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

func subscriberRules() []rule {
	return []rule{
		{sentence: "a nacked message comes again with the same id", try: nackBringsAgain},
		{sentence: "a message that is nacked again and again does not spin", try: nackDoesNotSpin},
		{sentence: "with concurrency one the next message waits for the ack", try: serial},
		{sentence: "with concurrency n just n messages are handed out", try: concurrencyIsBounded},
		{sentence: "messages of one key come one at a time and in order", try: keyIsSerial},
		{sentence: "a nacked message stays in front of its key", try: nackKeepsKeyOrder},
		{sentence: "a key that waits does not hold up others", try: otherKeysGoOn},
		{sentence: "a malformed entry does not stop what is behind it", try: malformedEntries},
		{sentence: "a message's context ends with its ack and has the subscription's values", try: contextOfMessage},
		{sentence: "when its context ends what is handed out can be finished", try: contextEndDrains},
		{sentence: "Close waits until what is handed out is finished", try: closeDrains},
		{sentence: "Close does not wait for ever for a handler that hangs", try: closeIsBounded},
		{sentence: "what was not acked goes to another subscriber", try: unackedGoesOn},
		{sentence: "after Close no subscription begins and a second Close is harmless", try: closedSubscriber},
	}
}

func nackBringsAgain(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 5})
	sent := messages(3)
	s.publish(s.publisher(), sent...)

	nacked, acked := map[string]int{}, map[string]int{}
	for len(acked) < len(sent) {
		m := s.next(out)
		if nacked[m.UUID] < 2 {
			nacked[m.UUID]++
			m.Nack()
			continue
		}
		acked[m.UUID]++
		m.Ack()
	}
	for _, m := range sent {
		if nacked[m.UUID] != 2 || acked[m.UUID] != 1 {
			s.Errorf("message %s: nacked %d times, acked %d times", m.UUID, nacked[m.UUID], acked[m.UUID])
		}
	}
	s.none(out, "all was acked")
}

func nackDoesNotSpin(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 5})
	s.publish(s.publisher(), messages(1)...)
	start := time.Now()
	count := 0
	for ; count < 2 || time.Since(start) < time.Second; count++ {
		s.next(out).Nack()
	}
	if took := time.Since(start); float64(count) > 120*took.Seconds() {
		s.Errorf("delivered %d times in %s", count, took)
	}
}

func serial(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 1})
	s.publish(s.publisher(), messages(2)...)
	first := s.next(out)
	s.none(out, "the first is not acked")
	first.Ack()
	s.next(out).Ack()
}

func concurrencyIsBounded(s *scene) {
	const n = 4
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: n})
	s.publish(s.publisher(), messages(3*n)...)
	var held []*message.Message
	for range n {
		held = append(held, s.next(out))
	}
	s.none(out, "as many as allowed are not acked")
	held[n-1].Ack() // out of order
	s.next(out).Ack()
	for _, m := range held {
		m.Ack()
	}
	s.collect(out, 2*n-1)
}

func keyIsSerial(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 8})
	sent := withKey("k", messages(20))
	s.publish(s.publisher(), sent...)
	for i, want := range sent {
		m := s.next(out)
		if m.UUID != want.UUID {
			s.Fatalf("delivery %d is message %s, want %s", i, m.Payload, want.Payload)
		}
		if i < 2 {
			s.none(out, "the message before it is not acked")
		}
		m.Ack()
	}
}

func nackKeepsKeyOrder(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 8})
	sent := withKey("k", messages(12))
	s.publish(s.publisher(), sent...)
	for i, want := range sent {
		for range 2 {
			m := s.next(out)
			if m.UUID != want.UUID {
				s.Fatalf("got message %s, want message %s again", m.Payload, want.Payload)
			}
			m.Nack()
		}
		m := s.next(out)
		if m.UUID != want.UUID {
			s.Fatalf("delivery %d is message %s, want %s", i, m.Payload, want.Payload)
		}
		m.Ack()
	}
}

func otherKeysGoOn(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 8})
	// Alone, because over different keys a batch has no order.
	sent := withKey("stopped", messages(3))
	pub := s.publisher()
	s.publish(pub, sent...)
	s.publish(pub, append(withKey("other", messages(10)), messages(10)...)...)

	held := s.next(out)
	if held.UUID != sent[0].UUID {
		s.Fatalf("the first delivery is %s", held.UUID)
	}
	for _, m := range s.collect(out, 20) {
		if m.Metadata.Get(keyMetadata) == "stopped" {
			s.Fatal("a message overtook the one before it of the same key")
		}
	}
	held.Ack()
	if got := ids(s.collect(out, 2)); !slices.Equal(got, ids(sent[1:3])) {
		s.Errorf("then came %v", got)
	}
}

// malformedEntries accepts that a malformed entry is handed out or set aside; it must not stop the rest, and
// what is handed out has an id.
func malformedEntries(s *scene) {
	s.group(s.topic, "g")
	out := s.subscribe(Settings{Group: "g", Concurrency: 2})
	s.broker.WriteMalformed(s.T, s.topic)
	sent := messages(5)
	s.publish(s.publisher(), sent...)

	missing := map[string]bool{}
	for _, m := range sent {
		missing[m.UUID] = true
	}
	for len(missing) > 0 {
		m := s.next(out)
		if m.UUID == "" {
			s.Error("a message without an id")
		}
		delete(missing, m.UUID)
		m.Ack()
	}
}

type ctxKey struct{}

func contextOfMessage(s *scene) {
	s.group(s.topic, "g")
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), ctxKey{}, "value"))
	defer cancel()
	out := s.subscribeWith(ctx, s.subscriber(Settings{Group: "g", Concurrency: 1}))
	s.publish(s.publisher(), messages(1)...)
	m := s.next(out)
	if m.Context().Value(ctxKey{}) != "value" {
		s.Error("the values of the subscription's context are missing")
	}
	if err := m.Context().Err(); err != nil {
		s.Errorf("the context ended before the ack: %v", err)
	}
	m.Ack()
	select {
	case <-m.Context().Done():
	case <-time.After(patience):
		s.Error("the context did not end with the ack")
	}
}

func contextEndDrains(s *scene) {
	ctx, cancel := context.WithCancel(context.Background())
	sub := s.subscriber(Settings{Group: "g", Concurrency: 2, CloseTimeout: patience})
	s.drains(ctx, sub, func() { cancel() })
}

func closeDrains(s *scene) {
	sub := s.subscriber(Settings{Group: "g", Concurrency: 2, CloseTimeout: patience})
	closed := make(chan error, 1)
	s.drains(context.Background(), sub, func() { go func() { closed <- sub.Close() }() })
	if err := <-closed; err != nil {
		s.Errorf("Close: %v", err)
	}
}

// drains ends a subscription while one message is being handled, and finishes it then.
func (s *scene) drains(ctx context.Context, sub message.Subscriber, end func()) {
	s.Helper()
	s.group(s.topic, "g")
	out := s.subscribeWith(ctx, sub)
	sent := messages(10)
	s.publish(s.publisher(), sent...)
	held := s.next(out)
	end()

	select {
	case <-held.Context().Done():
		s.Fatal("the message's context was cancelled at once")
	case <-time.After(quiet):
	}
	if !held.Ack() {
		s.Fatal("Ack was not accepted")
	}
	s.ended(out)
	if failed, ok := sub.(interface{ Err() error }); !ok || failed.Err() != nil {
		s.Error("Err must exist, and be nil after an orderly end")
	}

	rest := map[string]bool{}
	for _, m := range sent {
		rest[m.UUID] = m.UUID != held.UUID
	}
	other := s.subscribe(Settings{Group: "g", Concurrency: 1})
	for _, m := range s.collect(other, len(sent)-1) {
		if !rest[m.UUID] {
			s.Errorf("message %s came again", m.Payload)
		}
		rest[m.UUID] = false
	}
	s.none(other, "all was acked")
}

func closeIsBounded(s *scene) {
	s.group(s.topic, "g")
	sub := s.subscriber(Settings{Group: "g", Concurrency: 2, CloseTimeout: time.Second})
	out := s.subscribeWith(context.Background(), sub)
	s.publish(s.publisher(), messages(1)...)
	held := s.next(out)
	start := time.Now()
	_ = sub.Close()
	if took := time.Since(start); took > soon {
		s.Errorf("Close took %s", took)
	}
	select {
	case <-held.Context().Done():
	case <-time.After(patience):
		s.Error("the context of a message that is given up did not end")
	}
	s.ended(out)
	again := s.next(s.subscribe(Settings{Group: "g", Concurrency: 1}))
	if again.UUID != held.UUID {
		s.Errorf("got %s, want the message that was given up", again.UUID)
	}
	again.Ack()
}

func unackedGoesOn(s *scene) {
	s.group(s.topic, "g")
	first := s.subscriber(Settings{Group: "g", Concurrency: 5})
	out := s.subscribeWith(context.Background(), first)
	sent := messages(10)
	s.publish(s.publisher(), sent...)
	for range 3 {
		s.next(out).Nack()
	}
	_ = first.Close()
	got := ids(s.collect(s.subscribe(Settings{Group: "g", Concurrency: 1}), len(sent)))
	want := ids(sent)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.Error("not every message came once")
	}
}

func closedSubscriber(s *scene) {
	s.group(s.topic, "g")
	sub := s.subscriber(Settings{Group: "g", Concurrency: 1})
	for range 2 {
		if err := sub.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	}
	if _, err := sub.Subscribe(context.Background(), s.topic); err == nil {
		s.Error("Subscribe after Close gave no error")
	}
}
