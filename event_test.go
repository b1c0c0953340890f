package millrace_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

type placed struct{ ID string }

func (p placed) String() string { return p.ID }

type shipped struct{ ID string }

// listening registers a listener of each phase for placed.
func listening(j *journal) *millrace.Bus {
	bus := millrace.NewBus(millrace.BusConfig{})
	for phase, name := range map[millrace.Phase]string{
		millrace.PhaseBeforeCommit: "before", millrace.PhaseAfterCommit: "committed", millrace.PhaseAfterRollback: "rolledback",
	} {
		millrace.On(bus, phase, func(_ context.Context, e placed) error { j.add("%s %s", name, e.ID); return nil })
	}
	millrace.On(bus, millrace.PhaseAfterCompletion, func(ctx context.Context, e placed) error {
		o, ok := millrace.OutcomeOf(ctx)
		j.add("done %s %v %v", e.ID, o, ok)
		return nil
	})
	return bus
}

func TestEvents(t *testing.T) {
	conform(t, []scenario{
		{"each phase hears of its outcome", nil, func(t *testing.T, e *env) {
			var j journal
			bus := listening(&j)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				return bus.Emit(ctx, placed{"1"})
			}))
			_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, bus.Emit(ctx, placed{"2"}))
				return errBusiness
			})
			require.Equal(t, "before 1, committed 1, done 1 committed true, rolledback 2, done 2 rolled back true", j.String())
		}},
		{"what a rolled back part emitted is not heard as committed", nil, func(t *testing.T, e *env) {
			var j journal
			bus := listening(&j)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				_ = e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, bus.Emit(ctx, placed{"inner"}))
					return errBusiness
				}, millrace.Nested())
				return bus.Emit(ctx, placed{"outer"})
			}))
			require.Equal(t, "before outer, rolledback inner, committed outer, done inner rolled back true, done outer committed true", j.String())
		}},
		{"the error of a PhaseBeforeCommit listener rolls back, others are reported", nil, func(t *testing.T, e *env) {
			bus := millrace.NewBus(millrace.BusConfig{})
			fail := true
			millrace.On(bus, millrace.PhaseBeforeCommit, func(context.Context, placed) error {
				if fail {
					return errBusiness
				}
				return nil
			})
			millrace.On(bus, millrace.PhaseAfterCommit, func(context.Context, placed) error { return errBusiness }, millrace.ListenerName("mail"))
			place := func(ctx context.Context, tx handle) error {
				require.NoError(t, note(ctx, tx, "a"))
				return bus.Emit(ctx, placed{"1"})
			}
			require.Equal(t, errBusiness, e.InTx(t.Context(), place))
			require.Empty(t, e.notes(t))
			fail = false
			require.NoError(t, e.InTx(t.Context(), place))
			require.Equal(t, "a", e.notes(t))
			require.Equal(t, "mail", e.hookErrors()[0].Name)
		}},
		{"a listener that emits again is served, in every phase", nil, func(t *testing.T, e *env) {
			var j journal
			bus := listening(&j)
			emit := func(id string) func(context.Context, shipped) error {
				return func(ctx context.Context, s shipped) error { return bus.Emit(ctx, placed{id}) }
			}
			millrace.On(bus, millrace.PhaseBeforeCommit, emit("from before"))
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, shipped{"1"}) }))
			require.Equal(t, "before from before, committed from before, done from before committed true", j.String())

			j = journal{}
			bus = millrace.NewBus(millrace.BusConfig{})
			millrace.On(bus, millrace.PhaseAfterCommit, emit2(bus, "again"))
			millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e placed) error { j.add("heard %s", e.ID); return nil })
			millrace.On(bus, millrace.PhaseAfterRollback, func(_ context.Context, e placed) error { j.add("wrong"); return nil })
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, shipped{"1"}) }))
			require.Equal(t, "heard again", j.String())
			require.Empty(t, e.hookErrors())
		}},
		{"emitted after the commit, an event is an error for a before listener and still reaches the others", nil, func(t *testing.T, e *env) {
			var j journal
			bus := listening(&j) // the before listener comes first
			millrace.On(bus, millrace.PhaseAfterCommit, emit2(bus, "late"))
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, shipped{"1"}) }))
			require.Equal(t, "committed late, done late committed true", j.String())
			require.Len(t, e.hookErrors(), 1)
			require.ErrorIs(t, e.hookErrors()[0].Err, millrace.ErrTxCompleted)
		}},
		{"listeners that emit without end are stopped and reported", nil, func(t *testing.T, e *env) {
			bus := millrace.NewBus(millrace.BusConfig{})
			calls := 0
			millrace.On(bus, millrace.PhaseAfterCommit, func(ctx context.Context, p placed) error { calls++; return bus.Emit(ctx, p) })
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, placed{"1"}) }))
			require.Equal(t, 17, calls)
			require.Len(t, e.hookErrors(), 1)
		}},
		{"a listener may open its own transaction and emit there", nil, func(t *testing.T, e *env) {
			var j journal
			bus := listening(&j)
			millrace.On(bus, millrace.PhaseAfterCommit, func(ctx context.Context, s shipped) error {
				return e.InTx(ctx, func(ctx context.Context, tx handle) error {
					require.NoError(t, note(ctx, tx, "b"))
					return bus.Emit(ctx, placed{"inside"})
				})
			})
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, shipped{"1"}) }))
			require.Equal(t, "before inside, committed inside, done inside committed true", j.String())
			require.Equal(t, "b", e.notes(t))
		}},
		{"an asynchronous listener is not waited for, and hears its own phase's outcome", nil, func(t *testing.T, e *env) {
			var j journal
			bus := millrace.NewBus(millrace.BusConfig{})
			release := make(chan struct{})
			late := make(chan string, 2)
			hear := func(ctx context.Context, e placed) error {
				<-release
				o, ok := millrace.OutcomeOf(ctx)
				late <- fmt.Sprint(e.ID, " ", o, " ", ok)
				return errBusiness
			}
			millrace.On(bus, millrace.PhaseAfterCommit, hear, millrace.ListenerAsync(), millrace.ListenerName("mail"))
			millrace.On(bus, millrace.PhaseAfterRollback, hear, millrace.ListenerAsync(), millrace.ListenerName("mail"))
			millrace.On(bus, millrace.PhaseAfterCommit, func(context.Context, placed) error { j.add("in line"); return nil })
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, placed{"1"}) }))
			require.Equal(t, "in line", j.String())
			_ = e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				require.NoError(t, bus.Emit(ctx, placed{"2"}))
				return errBusiness
			})
			require.Empty(t, late)
			close(release)
			require.ElementsMatch(t, []string{"1 committed true", "2 rolled back true"}, []string{<-late, <-late})
			testenv.Eventually(t, 30*time.Second, "their failures are reported", func() bool { return len(e.hookErrors()) == 2 })
			require.Equal(t, "mail", e.hookErrors()[0].Name)
		}},
		{"what a hook's option says is refused where it would mean nothing", nil, func(t *testing.T, e *env) {
			var j journal
			bus := listening(&j)
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				for _, o := range []millrace.HookOption{millrace.Async(), millrace.Name("mail"), millrace.Order(1)} {
					require.ErrorIs(t, bus.Emit(ctx, placed{"1"}, o), millrace.ErrUnsupported)
					require.ErrorIs(t, millrace.MarkRollbackOnly(ctx, o), millrace.ErrUnsupported)
				}
				return bus.Emit(ctx, placed{"2"}, millrace.For(e.db))
			}))
			require.Equal(t, "before 2, committed 2, done 2 committed true", j.String())
		}},
	})
}

func TestAListenerThatCannotBeIsRefusedAtWiring(t *testing.T) {
	t.Parallel()
	bus := millrace.NewBus(millrace.BusConfig{})
	hear := func(context.Context, placed) error { return nil }
	durable := millrace.Durable(gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{}), "topic")
	named := millrace.ListenerName("billing")
	for why, on := range map[string]func(){
		"no function":                           func() { millrace.On[placed](bus, millrace.PhaseAfterCommit, nil) },
		"durable, without a name":               func() { millrace.On(bus, millrace.PhaseAfterCommit, hear, durable) },
		"durable, of another phase":             func() { millrace.On(bus, millrace.PhaseAfterRollback, hear, durable, named) },
		"durable and asynchronous":              func() { millrace.On(bus, millrace.PhaseAfterCommit, hear, durable, named, millrace.ListenerAsync()) },
		"asynchronous, though COMMIT must wait": func() { millrace.On(bus, millrace.PhaseBeforeCommit, hear, millrace.ListenerAsync()) },
	} {
		require.Panics(t, on, why)
	}
}

func emit2(bus *millrace.Bus, id string) func(context.Context, shipped) error {
	return func(ctx context.Context, s shipped) error { return bus.Emit(ctx, placed{id}) }
}

func TestWithoutATransactionTheChoiceIsExplicit(t *testing.T) {
	t.Parallel()
	for mode, want := range map[millrace.NoTransaction]string{millrace.Refuse: "", millrace.Drop: "", millrace.RunNow: "committed"} {
		var j journal
		bus := millrace.NewBus(millrace.BusConfig{NoTransaction: mode})
		millrace.On(bus, millrace.PhaseAfterCommit, func(context.Context, placed) error { j.add("committed"); return nil })
		millrace.On(bus, millrace.PhaseAfterRollback, func(context.Context, placed) error { j.add("rolledback"); return nil })
		err := bus.Emit(t.Context(), placed{})
		require.Equal(t, mode == millrace.Refuse, err != nil)
		if err != nil {
			require.ErrorIs(t, err, millrace.ErrNoTransaction)
		}
		require.Equal(t, mode == millrace.Drop, bus.Dropped() == 1)
		require.Equal(t, want, j.String())
	}
}

func TestAnInterfaceListenerHearsAllThatImplementIt(t *testing.T) {
	t.Parallel()
	var j journal
	bus := millrace.NewBus(millrace.BusConfig{NoTransaction: millrace.RunNow})
	millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e fmt.Stringer) error { j.add("%v", e); return nil })
	require.NoError(t, bus.Emit(t.Context(), placed{"1"}))
	require.NoError(t, bus.Emit(t.Context(), shipped{"2"}))
	require.Equal(t, "1", j.String())
}

func TestADurableListenerRunsAsAConsumer(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "sqlite", millrace.Config{})
	pubsub := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = pubsub.Close() })
	bus := millrace.NewBus(millrace.BusConfig{})
	heard := make(chan placed, 1)
	millrace.On(bus, millrace.PhaseAfterCommit, func(_ context.Context, e placed) error { heard <- e; return nil },
		millrace.Durable(pubsub, "orders.placed"), millrace.ListenerName("billing"))
	require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error { return bus.Emit(ctx, placed{"1"}) }))
	require.Empty(t, heard, "it is the consumer that calls it")

	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	require.NoError(t, bus.AddHandlers(router, func(string) (message.Subscriber, error) { return pubsub, nil }))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- millrace.RunRouter(ctx, router) }()
	require.Equal(t, placed{"1"}, <-heard)
	cancel()
	require.NoError(t, <-done)
}
