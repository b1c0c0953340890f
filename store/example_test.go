package store_test

import (
	"context"
	"fmt"

	"github.com/millrace-go/millrace/store"
)

func ExampleReplay() {
	ctx := context.Background()
	st := new(store.Memory) // in a service: sqlstore.New(db)
	for _, id := range []string{"id-1", "id-2"} {
		_ = st.Put(ctx, store.Letter{Entry: store.Entry{Group: "billing", MessageID: id}, Reason: "timeout"})
	}

	order := store.Order{Filter: store.Filter{Group: "billing", Reason: "timeout"}, DryRun: true}
	would, _ := store.Replay(ctx, st, order)
	fmt.Println("would replay", len(would.Letters))

	_ = st.Put(ctx, store.Letter{Entry: store.Entry{Group: "billing", MessageID: "id-3"}, Reason: "timeout"})
	order.DryRun, order.Letters = false, would.Letters // these and no others
	order.Who, order.Why = "ann", "the bank is back"
	order.PerSecond = 100
	did, err := store.Replay(ctx, st, order)
	fmt.Println("replayed", did.Done, err)
	// Output:
	// would replay 2
	// replayed 2 <nil>
}

func ExampleReplayEdited() {
	ctx := context.Background()
	st := new(store.Memory)
	_ = st.Put(ctx, store.Letter{Entry: store.Entry{Group: "billing", MessageID: "id-1", Payload: []byte(`{"amount": "ten"}`)}})
	letters, _ := st.List(ctx, store.Filter{Group: "billing"}, 0, 1)

	newID, err := store.ReplayEdited(ctx, st, "billing", letters[0].ID, store.Edit{Payload: []byte(`{"amount": 10}`)}, "ann", "amount was a word")
	fmt.Println(newID != "id-1", err)
	audit, _ := st.Audit(ctx, "billing", 0, 10)
	fmt.Println(audit[0].Action, audit[0].MessageID, audit[0].Who, audit[0].Why)
	// Output:
	// true <nil>
	// replay id-1 ann amount was a word
}

func ExampleDiscard() {
	ctx := context.Background()
	st := new(store.Memory)
	_ = st.Put(ctx, store.Letter{Entry: store.Entry{Group: "billing", MessageID: "id-1"}})
	did, err := store.Discard(ctx, st, store.Order{Filter: store.Filter{Group: "billing"}, Who: "ann", Why: "a test order"})
	fmt.Println(did.Done, err)
	// Output: 1 <nil>
}
