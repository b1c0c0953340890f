package half_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

// steps are the points at which a producer, or a process that checks back, is killed.
var steps = []string{"half.after_prepare", "half.inside", "half.after_local", "half.after_commit", "half.before_check", "half.after_check"}

func TestAProducerThatIsKilledAtAnyStepLosesAndInventsNothing(t *testing.T) {
	kills := 1
	if testenv.Full() {
		kills = 20
	}
	each(t, func(s *scene) {
		m := s.messages(half.Config{FirstCheck: time.Second, CheckEvery: 100 * time.Millisecond, MaxChecks: 10_000})
		for _, step := range steps {
			for n := 1; n <= kills; n++ {
				cmd := testenv.Child(s, "producer", fault.Env(step, n, "kill"), "OUT_DRIVER="+s.outDriver, "OUT_URL="+s.outURL,
					"BIZ_DRIVER="+s.bizName, "BIZ_URL="+s.bizURL, "NAME="+fmt.Sprint(step, n))
				require.Error(s, cmd.Run(), "it was killed")
			}
		}
		s.run(m)
		testenv.Eventually(s, 2*time.Minute, "all are decided", func() bool {
			return s.one(s.outRaw, `SELECT count(*) FROM millrace_half WHERE state = 'prepared'`) == 0
		})
		seen := 0
		for _, step := range steps {
			for n := 1; n <= kills; n++ {
				for i := range producing {
					id := messageID(fmt.Sprint(step, n), i)
					info, err := m.Get(s.Context(), id)
					if err != nil {
						continue // killed before
					}
					seen++
					want := map[bool]int{true: 1, false: 0}[s.ordered(id)]
					require.Equal(s, want, s.sent(id), "%s at %s: %+v", id, step, info)
				}
			}
		}
		require.Greater(s, seen, len(steps)*kills/2)
	})
}

const producing = 30 // messages of one producer at most

func messageID(name string, i int) string { return fmt.Sprintf("%s-%d", name, i) }

// producer sends half messages and checks back, until it is killed.
func producer() {
	out, biz := connect("OUT"), connect("BIZ")
	ctx := context.Background()
	box, err := outbox.New(out, outbox.Config{})
	must(err)
	m, err := half.New(out, box, half.Config{
		Witnesses: map[string]millrace.DB{"orders": biz}, FirstCheck: time.Millisecond, CheckEvery: 5 * time.Millisecond, MaxChecks: 10_000,
	})
	must(err)
	go func() { must(m.Run(ctx)) }()
	name := os.Getenv("NAME")
	for i := range producing {
		id := messageID(name, i)
		err := half.InTx(ctx, m, biz, "orders", msg(id), func(ctx context.Context, tx *millrace.Tx) error {
			if err := order(ctx, tx, id); err != nil {
				return err
			}
			fault.Point("half.inside")
			if i%5 == 4 {
				return errBusiness
			}
			return nil
		})
		_ = err // checked back too early, or rolled back on purpose: both are as good as any
	}
	// The points of the check-back are reached as often as there is something to check.
	for i := producing; ; i++ {
		_, err = m.PrepareWitnessed(ctx, biz, "orders", msg(messageID(name, i)))
		must(err)
	}
}

func connect(what string) *millrace.SQLDB {
	raw, err := sql.Open(os.Getenv(what+"_DRIVER"), os.Getenv(what+"_URL"))
	must(err)
	return millrace.SQL(raw)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
