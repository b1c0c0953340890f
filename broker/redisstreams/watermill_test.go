package redisstreams_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/millrace-go/millrace/internal/testenv"
)

// Watermill's suite. Of what it can test we do not claim: exactly-once delivery (nobody can), order over
// several members of a group (GuaranteedOrderWithSingleSubscriber says so), and that a new
// subscriber of a group gets messages that the group has handled (without a group it does, and is tested).

// TestReconnect is in a file of its own.

func TestWatermillsSuite(t *testing.T) {
	url := testenv.Redis(t)
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups: true,
		Persistent:     true,
		// The counts of the suite are for an idle machine with many cores; Full runs them.
		ForceShort: !testenv.Full(),
	},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return pubSub(t, url, "group") },
		func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
			return pubSub(t, url, group)
		},
	)
}

func pubSub(t *testing.T, url, group string) (message.Publisher, message.Subscriber) {
	cfg := quick(url)
	cfg.ConsumerGroup = group
	cfg.NackDelay = 5 * time.Millisecond
	return publisher(t, cfg), subscriber(t, cfg)
}

func TestWatermillsSuiteOfOrder(t *testing.T) {
	url := testenv.Redis(t)
	strict := func(t *testing.T) (message.Publisher, message.Subscriber) {
		cfg := quick(url)
		cfg.ConsumerGroup = "group"
		cfg.Concurrency = 1
		return publisher(t, cfg), subscriber(t, cfg)
	}
	about := func() tests.TestContext {
		return tests.TestContext{TestID: tests.NewTestID(), Features: tests.Features{
			ConsumerGroups: true, Persistent: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true,
		}}
	}
	t.Run("TestPublishSubscribeInOrder", func(t *testing.T) { tests.TestPublishSubscribeInOrder(t, about(), strict) })
	t.Run("TestNoAck", func(t *testing.T) { tests.TestNoAck(t, about(), strict) })
}

func TestWatermillsSuiteWithoutAGroup(t *testing.T) {
	url := testenv.Redis(t)
	tests.TestNewSubscriberReceivesOldMessages(t,
		tests.TestContext{TestID: tests.NewTestID(), Features: tests.Features{
			Persistent: true, NewSubscriberReceivesOldMessages: true,
		}},
		func(t *testing.T) (message.Publisher, message.Subscriber) {
			cfg := quick(url)
			cfg.StartID = "0"
			return publisher(t, cfg), subscriber(t, cfg)
		})
}
