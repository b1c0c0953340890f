package outbox_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/millrace-go/millrace/outbox"
)

// A statement that looks through a small table for its rows locks the rows of the others on the way.
func TestOperatorsWhoWorkAtOnceOnDifferentMessagesDoNotWaitForEachOtherCrosswise(t *testing.T) {
	for _, back := range []backend{postgresPool, mariadb} {
		t.Run(back.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, back, outbox.Config{})
			by := outbox.By{Who: "w", Why: "y"}
			for round := range 10 {
				b.exec(`DELETE FROM millrace_outbox`)
				var group sync.WaitGroup
				for worker := range 4 {
					var ids []string
					for i := range 3 {
						id := fmt.Sprintf("%d-%d-%d", round, worker, i)
						ids = append(ids, id)
						b.exec(`INSERT INTO millrace_dead (pos, id, lane, topic, order_key, destination, reason, error, attempts, size, metadata, payload, created_at, died_at)
							VALUES (1, '` + id + `', 1, 't', '', '', '', '', 1, 1, '{}', '', ` + b.in(0) + `, ` + b.in(0) + `)`)
					}
					group.Go(func() {
						for _, id := range ids {
							act := b.box.Replay
							if worker%2 == 0 {
								act = b.box.Discard
							}
							r, err := act(t.Context(), by, outbox.Filter{IDs: []string{id}}, outbox.Bulk{})
							assert.NoError(t, err)
							assert.EqualValues(t, 1, r.Done)
						}
					})
				}
				group.Wait()
			}
		})
	}
}
