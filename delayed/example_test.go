package delayed_test

import (
	"database/sql"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/delayed"
	"github.com/millrace-go/millrace/store/sqlstore"
)

func ExampleSubscriber() {
	sqlDB, err := sql.Open("pgx", "postgres://localhost/billing")
	must(err)
	defer sqlDB.Close()
	st, err := sqlstore.New(millrace.SQL(sqlDB)) // its tables: millrace.Migrate(ctx, db, sqlstore.Migrations())
	must(err)

	var fromBroker message.Subscriber = gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	sub, err := delayed.Subscriber(fromBroker, st, delayed.Config{Handler: "billing"})
	must(err)

	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(err)
	router.AddConsumerHandler("billing", "orders", sub, func(*message.Message) error { return nil })
	fmt.Println("configured")
	// Output: configured
}
