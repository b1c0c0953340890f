package brokertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

const (
	// patience is how long the suite waits for something that must happen.
	patience = time.Minute

	// quiet is how long it watches that something does not happen.
	quiet = 300 * time.Millisecond

	// soon is what "answers soon" means, on a machine that is busy.
	soon = 30 * time.Second

	// keyMetadata carries the key by which order is kept.
	keyMetadata = "millrace_key"
)

// scene is one topic of its own, and what a rule does with it.
type scene struct {
	*testing.T
	broker Broker
	topic  string
}

func newScene(t *testing.T, b Broker) *scene {
	return &scene{T: t, broker: b, topic: newTopic()}
}

func newTopic() string {
	return "contract-" + rand.Text()
}

func (s *scene) publisher() BatchPublisher {
	s.Helper()
	p := s.broker.NewPublisher(s.T)
	s.Cleanup(func() { _ = p.Close() })
	return p
}

func (s *scene) subscriber(settings Settings) message.Subscriber {
	s.Helper()
	sub := s.broker.NewSubscriber(s.T, settings)
	s.Cleanup(func() { _ = sub.Close() })
	return sub
}

// group makes the group exist on the topic, so that it gets what is published from now on.
func (s *scene) group(topic, group string) {
	s.Helper()
	sub := s.broker.NewSubscriber(s.T, Settings{Group: group, Concurrency: 1})
	defer sub.Close()
	init, ok := sub.(message.SubscribeInitializer)
	if !ok {
		s.Fatal("the subscriber has no SubscribeInitialize")
	}
	if err := init.SubscribeInitialize(topic); err != nil {
		s.Fatalf("SubscribeInitialize: %v", err)
	}
}

// subscribe starts a subscription of the scene's topic that lasts as long as the test.
func (s *scene) subscribe(settings Settings) <-chan *message.Message {
	s.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.Cleanup(cancel)
	return s.subscribeWith(ctx, s.subscriber(settings))
}

func (s *scene) subscribeWith(ctx context.Context, sub message.Subscriber) <-chan *message.Message {
	s.Helper()
	out, err := sub.Subscribe(ctx, s.topic)
	if err != nil {
		s.Fatalf("Subscribe: %v", err)
	}
	return out
}

// publish sends messages to the scene's topic and expects every one to be confirmed.
func (s *scene) publish(p BatchPublisher, msgs ...*message.Message) {
	s.Helper()
	topics := make([]string, len(msgs))
	for i := range topics {
		topics[i] = s.topic
	}
	for i, err := range s.batch(p, topics, msgs) {
		if err != nil {
			s.Fatalf("message %d was not confirmed: %v", i, err)
		}
	}
}

func (s *scene) batch(p BatchPublisher, topics []string, msgs []*message.Message) []error {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	errs := p.PublishBatch(ctx, topics, msgs)
	if len(errs) != len(msgs) {
		s.Fatalf("%d answers for %d messages", len(errs), len(msgs))
	}
	return errs
}

// next waits for a message.
func (s *scene) next(out <-chan *message.Message) *message.Message {
	s.Helper()
	select {
	case m, open := <-out:
		if !open {
			s.Fatal("the subscription ended")
		}
		return m
	case <-time.After(patience):
		s.Fatal("no message came")
	}
	return nil
}

// none watches that no message comes for a while.
func (s *scene) none(out <-chan *message.Message, why string) {
	s.Helper()
	select {
	case m, open := <-out:
		if open {
			s.Fatalf("%s: got message %s", why, m.UUID)
		}
	case <-time.After(quiet):
	}
}

// collect acknowledges n messages and returns them in the order in which they came.
func (s *scene) collect(out <-chan *message.Message, n int) []*message.Message {
	s.Helper()
	var got []*message.Message
	for len(got) < n {
		m := s.next(out)
		m.Ack()
		got = append(got, m)
	}
	return got
}

// ended waits for the end of a subscription; messages that still come are given back.
func (s *scene) ended(out <-chan *message.Message) {
	s.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m, open := <-out:
			if !open {
				return
			}
			m.Nack()
		case <-deadline:
			s.Fatal("the subscription did not end")
		}
	}
}

// refused reports whether err says that the broker refused this very message, and why.
func refused(err error) (reason string, ok bool) {
	var r interface {
		error
		Refused() bool
		Reason() string
	}
	if errors.As(err, &r) && r.Refused() {
		return r.Reason(), true
	}
	return "", false
}

func (s *scene) mustBeRefused(err error) {
	s.Helper()
	if err == nil {
		s.Fatal("the message was confirmed, expected a refusal")
	}
	reason, ok := refused(err)
	if !ok {
		s.Fatalf("the error is no refusal: %v", err)
	}
	if reason == "" {
		s.Fatalf("the refusal has no reason: %v", err)
	}
}

func (s *scene) mustBeUnreachable(err error) {
	s.Helper()
	if err == nil {
		s.Fatal("the message was confirmed, expected an error")
	}
	if reason, ok := refused(err); ok {
		s.Fatalf("the message was blamed for an outage: %s: %v", reason, err)
	}
}

// messages makes n messages, numbered in their payloads.
func messages(n int) []*message.Message {
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%d", i))
	}
	return msgs
}

func withKey(key string, msgs []*message.Message) []*message.Message {
	for _, m := range msgs {
		m.Metadata.Set(keyMetadata, key)
	}
	return msgs
}

func ids(msgs []*message.Message) []string {
	list := make([]string, len(msgs))
	for i, m := range msgs {
		list[i] = m.UUID
	}
	return list
}
