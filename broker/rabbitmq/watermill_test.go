package rabbitmq_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
)

// pubSub makes what Watermill's suite asks for. The suite waits for the end of subscriptions whose
// last messages nobody acknowledges, so handlers get little time.
func pubSub(config rabbitmq.Config) tests.ConsumerGroupPubSubConstructor {
	config.NackDelay = 2 * time.Millisecond
	config.CloseTimeout = time.Second
	return func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		config := config
		config.ConsumerGroup = group
		return newPublisher(t, config), newSubscriber(t, config)
	}
}

func inGroup(create tests.ConsumerGroupPubSubConstructor, group string) tests.PubSubConstructor {
	return func(t *testing.T) (message.Publisher, message.Subscriber) { return create(t, group) }
}

func TestWatermillsSuitePassesOneByOne(t *testing.T) {
	create := pubSub(rabbitmq.Config{URL: testenv.RabbitMQ(t), Concurrency: 1})
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups:                      true,
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
		ForceShort:                          !testenv.Full(),
	}, inGroup(create, "group"), create)
}

func TestWatermillsSuitePassesWithManyInHand(t *testing.T) {
	create := pubSub(rabbitmq.Config{URL: testenv.RabbitMQ(t), Quorum: true})
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups: true,
		Persistent:     true,
		ForceShort:     !testenv.Full(),
	}, inGroup(create, "group"), create)
}

func TestWatermillsSuitePassesWithWorkQueues(t *testing.T) {
	create := pubSub(rabbitmq.Config{URL: testenv.RabbitMQ(t), AMQP: amqp.NewDurableQueueConfig("")})
	tests.TestPubSub(t, tests.Features{
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
		ForceShort:                          !testenv.Full(),
	}, inGroup(create, ""), nil)
}
