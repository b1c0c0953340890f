package millracetest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/millracetest"
)

func ExampleAway() {
	st := millracetest.Away(new(dedup.Memory))
	idempotent, err := middleware.Idempotent(st, middleware.IdempotentConfig{Consumer: "billing", BusyWait: 1})
	if err != nil {
		panic(err)
	}
	handle := idempotent(func(*message.Message) ([]*message.Message, error) {
		fmt.Println("billed")
		return nil, nil
	})
	for _, away := range []bool{true, false} {
		st.Set(away)
		_, err = handle(message.NewMessage("id-1", nil))
		fmt.Println("away:", away, "nacked:", err != nil)
	}
	// Output:
	// away: true nacked: true
	// billed
	// away: false nacked: false
}

func ExampleRecorder() {
	// A test of code that publishes in transactions; db and box are the application's.
	_ = func(t *testing.T, place func(ctx context.Context, pub message.Publisher) error, rec *millracetest.Recorder) {
		if err := place(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		rec.Expect(t, "orders.placed", `{"id":1}`)
	}
}
