package brokertest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

func publisherRules() []rule {
	return []rule{
		{sentence: "a confirmed message reaches every group, whole", try: confirmedIsDelivered},
		{sentence: "any bytes and any text in metadata arrive as they were", try: contentIsKept},
		{sentence: "each topic of a batch gets its own messages", try: topicsAreKeptApart},
		{sentence: "the messages of a batch that share a key, and those without one, are delivered in the order given", try: orderIsKept},
		{sentence: "many batches at once all arrive", try: concurrentBatches},
		{sentence: "an empty batch has no answers", try: emptyBatch},
		{sentence: "the messages are left as they were", try: messagesAreNotChanged},
		{sentence: "a nil message is refused and the others arrive", try: nilMessage},
		{sentence: "an empty topic is refused and the others arrive", try: emptyTopic},
		{sentence: "a message above the limit is refused and the others arrive", try: tooLarge},
		{
			sentence: "a message that reaches nobody is refused and the others arrive", try: unroutable,
			applies: func(b Broker) bool { return b.Unroutable != nil },
		},
		{sentence: "Publish tells a refusal as PublishBatch does", try: publishTellsRefusal},
		{sentence: "when the context has ended it answers soon and blames no message", try: contextEnded},
		{sentence: "an unreachable broker is told soon and no message is blamed", try: unreachable},
		{sentence: "after Close nothing is sent and no message is blamed", try: closedPublisher},
		{sentence: "no error carries what is in a message", try: errorsAreDiscreet},
	}
}

func confirmedIsDelivered(s *scene) {
	s.group(s.topic, "one")
	s.group(s.topic, "two")
	sent := message.NewMessage(watermill.NewUUID(), []byte("payload"))
	sent.Metadata.Set("name", "value")
	s.publish(s.publisher(), sent)

	for _, group := range []string{"one", "two"} {
		got := s.next(s.subscribe(Settings{Group: group, Concurrency: 1}))
		s.same(sent, got)
		got.Ack()
	}
}

// same compares id and payload, and what the sender set in the metadata: a broker may add to it.
func (s *scene) same(sent, got *message.Message) {
	s.Helper()
	if got.UUID != sent.UUID {
		s.Errorf("id %q, want %q", got.UUID, sent.UUID)
	}
	if !bytes.Equal(got.Payload, sent.Payload) {
		s.Errorf("payload %q, want %q", got.Payload, sent.Payload)
	}
	for name, want := range sent.Metadata {
		if value, ok := got.Metadata[name]; !ok || value != want {
			s.Errorf("metadata %q: %q, want %q", name, value, want)
		}
	}
}

func contentIsKept(s *scene) {
	s.group(s.topic, "g")
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	sent := []*message.Message{
		message.NewMessage(watermill.NewUUID(), every),
		message.NewMessage(watermill.NewUUID(), nil),
		message.NewMessage("an id of the user's own: 42/ü", []byte("x")),
		message.NewMessage(watermill.NewUUID(), []byte("x")),
	}
	sent[3].Metadata = message.Metadata{
		"empty": "", "text": "größe ✓\nline", "Case": "A", "case": "b", "long": strings.Repeat("x", 5000),
	}
	s.publish(s.publisher(), sent...)
	got := s.collect(s.subscribe(Settings{Group: "g", Concurrency: 1}), len(sent))
	for i := range sent {
		s.same(sent[i], got[i])
	}
}

func topicsAreKeptApart(s *scene) {
	names := []string{newTopic(), newTopic(), newTopic()}
	for _, name := range names {
		s.group(name, "g")
	}
	msgs := messages(30)
	topics := make([]string, len(msgs))
	want := map[string][]string{}
	for i, m := range msgs {
		topics[i] = names[i%len(names)]
		want[topics[i]] = append(want[topics[i]], m.UUID)
	}
	for i, err := range s.batch(s.publisher(), topics, msgs) {
		if err != nil {
			s.Fatalf("message %d: %v", i, err)
		}
	}
	for _, name := range names {
		s.topic = name
		got := ids(s.collect(s.subscribe(Settings{Group: "g", Concurrency: 1}), len(want[name])))
		if !slices.Equal(got, want[name]) {
			s.Errorf("topic %s got %v, want %v", name, got, want[name])
		}
	}
}

func orderIsKept(s *scene) {
	s.group(s.topic, "g")
	msgs := messages(200)
	for i, m := range msgs {
		if i%2 == 0 {
			m.Metadata.Set(keyMetadata, fmt.Sprint("k", i%6))
		}
	}
	s.publish(s.publisher(), msgs...)
	got := byKey(s.collect(s.subscribe(Settings{Group: "g", Concurrency: 1}), len(msgs)))
	for key, sent := range byKey(msgs) {
		if !slices.Equal(got[key], sent) {
			s.Errorf("the messages with the key %q came in another order than they were sent", key)
		}
	}
}

func byKey(msgs []*message.Message) map[string][]string {
	all := map[string][]string{}
	for _, m := range msgs {
		key := m.Metadata.Get(keyMetadata)
		all[key] = append(all[key], m.UUID)
	}
	return all
}

func concurrentBatches(s *scene) {
	s.group(s.topic, "g")
	p := s.publisher()
	var wg sync.WaitGroup
	var all []string
	for range 20 {
		msgs := messages(25)
		all = append(all, ids(msgs)...)
		wg.Go(func() {
			topics := slices.Repeat([]string{s.topic}, len(msgs))
			for i, err := range s.broker.batchOf(p, topics, msgs) {
				if err != nil {
					s.Errorf("message %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if s.Failed() {
		return
	}
	got := ids(s.collect(s.subscribe(Settings{Group: "g", Concurrency: 20}), len(all)))
	slices.Sort(all)
	slices.Sort(got)
	if !slices.Equal(got, all) {
		s.Error("not every message arrived once")
	}
}

// batchOf is for goroutines other than the test's.
func (Broker) batchOf(p BatchPublisher, topics []string, msgs []*message.Message) []error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.PublishBatch(ctx, topics, msgs)
}

func emptyBatch(s *scene) {
	s.batch(s.publisher(), nil, nil)
	if err := s.publisher().Publish(s.topic); err != nil {
		s.Errorf("Publish of no message: %v", err)
	}
}

func messagesAreNotChanged(s *scene) {
	s.group(s.topic, "g")
	m := message.NewMessage(watermill.NewUUID(), []byte("payload"))
	m.Metadata.Set("name", "value")
	before := m.Copy()
	s.publish(s.publisher(), m)
	if !m.Equals(before) {
		s.Errorf("the message was changed: %v, was %v", m.Metadata, before.Metadata)
	}
	bare := &message.Message{UUID: watermill.NewUUID(), Payload: []byte("no metadata at all")}
	s.publish(s.publisher(), bare)
}

// onlyRefuses sends a batch of which message bad must be refused and every other confirmed.
func (s *scene) onlyRefuses(p BatchPublisher, topics []string, msgs []*message.Message, bad int) error {
	s.Helper()
	var want []string
	errs := s.batch(p, topics, msgs)
	for i, err := range errs {
		if i == bad {
			s.mustBeRefused(err)
			continue
		}
		if err != nil {
			s.Fatalf("message %d is innocent: %v", i, err)
		}
		want = append(want, msgs[i].UUID)
	}
	got := ids(s.collect(s.subscribe(Settings{Group: "g", Concurrency: 1}), len(want)))
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.Error("the others did not all arrive once")
	}
	return errs[bad]
}

func nilMessage(s *scene) {
	s.group(s.topic, "g")
	msgs := messages(5)
	msgs[2] = nil
	_ = s.onlyRefuses(s.publisher(), slices.Repeat([]string{s.topic}, 5), msgs, 2)
}

func emptyTopic(s *scene) {
	s.group(s.topic, "g")
	topics := slices.Repeat([]string{s.topic}, 5)
	topics[2] = ""
	_ = s.onlyRefuses(s.publisher(), topics, messages(5), 2)
}

func tooLarge(s *scene) {
	s.group(s.topic, "g")
	msgs := messages(5)
	msgs[2].Payload = make([]byte, s.broker.MaxPayload+1)
	err := s.onlyRefuses(s.publisher(), slices.Repeat([]string{s.topic}, 5), msgs, 2)
	if reason, _ := refused(err); reason != "too_large" {
		s.Errorf("reason %q, want too_large", reason)
	}
}

func unroutable(s *scene) {
	s.group(s.topic, "g")
	topics := slices.Repeat([]string{s.topic}, 20)
	topics[7] = s.broker.Unroutable(s.T)
	err := s.onlyRefuses(s.publisher(), topics, messages(20), 7)
	if reason, _ := refused(err); reason != "no_route" {
		s.Errorf("reason %q, want no_route", reason)
	}
}

func publishTellsRefusal(s *scene) {
	s.group(s.topic, "g")
	m := message.NewMessage(watermill.NewUUID(), make([]byte, s.broker.MaxPayload+1))
	s.mustBeRefused(s.publisher().Publish(s.topic, m))
	s.mustBeRefused(s.publisher().Publish("", messages(1)...))
}

func contextEnded(s *scene) {
	s.group(s.topic, "g")
	p := s.publisher()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	msgs := messages(50)
	start := time.Now()
	errs := p.PublishBatch(ctx, slices.Repeat([]string{s.topic}, len(msgs)), msgs)
	if took := time.Since(start); took > soon {
		s.Errorf("it took %s", took)
	}
	if len(errs) != len(msgs) {
		s.Fatalf("%d answers for %d messages", len(errs), len(msgs))
	}
	for _, err := range errs {
		if err != nil {
			s.mustBeUnreachable(err)
		}
	}
	s.publish(p, messages(1)...) // the publisher is as good as before
}

func unreachable(s *scene) {
	p := s.broker.Unreachable(s.T)
	s.Cleanup(func() { _ = p.Close() })
	for range 2 {
		start := time.Now()
		for _, err := range s.batch(p, []string{s.topic, s.topic}, messages(2)) {
			s.mustBeUnreachable(err)
		}
		s.mustBeUnreachable(p.Publish(s.topic, messages(1)...))
		if took := time.Since(start); took > soon {
			s.Errorf("it took %s", took)
		}
	}
}

func closedPublisher(s *scene) {
	s.group(s.topic, "g")
	p := s.publisher()
	s.publish(p, messages(1)...)
	for range 2 {
		if err := p.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	}
	for _, err := range s.batch(p, []string{s.topic}, messages(1)) {
		s.mustBeUnreachable(err)
	}
	s.mustBeUnreachable(p.Publish(s.topic, messages(1)...))
	out := s.subscribe(Settings{Group: "g", Concurrency: 1})
	s.collect(out, 1)
	s.none(out, "a closed publisher sent something")
}

func errorsAreDiscreet(s *scene) {
	const canary = "canary-7f3a"
	huge := message.NewMessage(watermill.NewUUID(), bytes.Repeat([]byte(canary), s.broker.MaxPayload/len(canary)+1))
	huge.Metadata.Set("name", canary)
	small := message.NewMessage(watermill.NewUUID(), []byte(canary))
	small.Metadata.Set("name", canary)
	unreachable := s.broker.Unreachable(s.T)
	s.Cleanup(func() { _ = unreachable.Close() })

	errs := s.batch(s.publisher(), []string{s.topic, ""}, []*message.Message{huge, small})
	errs = append(errs, s.batch(unreachable, []string{s.topic}, []*message.Message{small})...)
	for _, err := range errs {
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, canary) {
			s.Errorf("an error shows what is in the message: %.200s", text)
		}
	}
}
