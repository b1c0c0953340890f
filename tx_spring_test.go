package millrace_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
)

// testdata/spring_order.txt is what Spring did in each of these scenarios (spring-tx 4.3.30 on HSQLDB): A, B, IN, OUT
// and N are synchronizations, e, inner and the like are events with a listener of each phase.
//
// Left out of every comparison: beforeCompletion, which has no counterpart (an error there is logged and the commit
// goes on; a BeforeCommit hook decides, a defer cleans up), and suspend and resume, because nothing is bound to a
// thread.
func springRecords(t *testing.T) map[string]record {
	text, err := os.ReadFile("testdata/spring_order.txt")
	require.NoError(t, err)
	records := map[string]record{}
	for _, section := range strings.Split("\n"+string(text), "\n## ")[1:] {
		lines := strings.Split(strings.TrimSpace(section), "\n")
		if name, refused, ok := strings.Cut(lines[0], " -> "); ok {
			require.Contains(t, refused, "IllegalTransactionStateException")
			records[name] = record{lines: []string{"refused"}}
			continue
		}
		name, _, _ := strings.Cut(lines[0], ": log=[]")
		var r record
		for _, line := range lines[1:] {
			line = strings.TrimSpace(line)
			if thrown, rows, ok := strings.Cut(line, " rows="); ok {
				r.thrown = springThrown(strings.TrimPrefix(thrown, "thrown="))
				r.rows = strings.ReplaceAll(strings.Trim(rows, "[]"), ",", "")
				continue
			}
			line, _, _ = strings.Cut(line, " syncActive=")
			if who, _, ok := strings.Cut(line, " -> "); ok {
				line = who + " refused"
			}
			if !strings.HasSuffix(line, ".beforeCompletion") && !strings.HasSuffix(line, ".suspend") && !strings.HasSuffix(line, ".resume") {
				r.lines = append(r.lines, line)
			}
		}
		records[name] = r
	}
	return records
}

func springThrown(s string) string {
	switch {
	case s == "none":
		return ""
	case strings.HasPrefix(s, "UnexpectedRollbackException"):
		return "unexpected rollback"
	}
	return "error"
}

// record is what can be seen of a scenario.
type record struct {
	thrown, rows string
	lines        []string
}

// only keeps the lines of the synchronizations, or those of the event listeners.
func (r record) only(part string) record {
	r.lines = slices.DeleteFunc(slices.Clone(r.lines), func(line string) bool {
		listener := strings.HasPrefix(line, "BEFORE_") || strings.HasPrefix(line, "AFTER_")
		return part == "hooks" && listener || part == "events" && !listener
	})
	return r
}

func (r record) String() string {
	return "thrown: " + r.thrown + "\nrows: " + r.rows + "\n" + strings.Join(r.lines, "\n")
}

// spring is Spring's cast on our stage.
type spring struct {
	*env
	journal
	bus *millrace.Bus
	tx  handle // of the outermost transaction
}

func (s *spring) emit(ctx context.Context, name string) error { return s.bus.Emit(ctx, placed{name}) }

// faults are what a synchronization does in a callback, by its name.
type faults map[string]func(ctx context.Context) error

// sync registers what a TransactionSynchronization is here.
func (s *spring) sync(ctx context.Context, name string, do faults) error {
	call := func(callback string) func(context.Context) error {
		return func(ctx context.Context) error {
			s.add("%s.%s", name, callback)
			if f := do[callback]; f != nil {
				return f(ctx)
			}
			return nil
		}
	}
	return errors.Join(
		millrace.BeforeCommit(ctx, call("beforeCommit")),
		millrace.AfterCommit(ctx, call("afterCommit")),
		millrace.AfterCompletion(ctx, func(ctx context.Context, o millrace.Outcome) error {
			return call("afterCompletion(" + springOutcome[o] + ")")(ctx)
		}))
}

var springOutcome = map[millrace.Outcome]string{
	millrace.Committed: "COMMITTED", millrace.RolledBack: "ROLLED_BACK", millrace.Unknown: "UNKNOWN",
}

func fails(context.Context) error { return errBusiness }

// listen registers the listeners in the order in which Spring's bean declares them.
func (s *spring) listen() {
	s.bus = millrace.NewBus(millrace.BusConfig{})
	millrace.On(s.bus, millrace.PhaseAfterCommit, func(ctx context.Context, e placed) error {
		s.add("AFTER_COMMIT(%s)", e.ID)
		switch e.ID {
		case "chain":
			return s.emit(ctx, "from-after-commit")
		case "boom":
			return errBusiness
		case "write":
			if err := note(ctx, s.tx, "99"); errors.Is(err, millrace.ErrTxCompleted) {
				s.add("write refused")
			}
		case "required":
			err := millrace.AfterCommit(ctx, nothing)
			s.add("REQUIRED inside after-commit: new=%v", errors.Is(err, millrace.ErrNoTransaction))
			return s.InTx(ctx, func(ctx context.Context, tx handle) error { return note(ctx, tx, "77") })
		}
		return nil
	})
	millrace.On(s.bus, millrace.PhaseAfterRollback, func(_ context.Context, e placed) error { s.add("AFTER_ROLLBACK(%s)", e.ID); return nil })
	millrace.On(s.bus, millrace.PhaseAfterCompletion, func(_ context.Context, e placed) error { s.add("AFTER_COMPLETION(%s)", e.ID); return nil })
	millrace.On(s.bus, millrace.PhaseBeforeCommit, func(_ context.Context, e placed) error {
		s.add("BEFORE_COMMIT(%s)", e.ID)
		if e.ID == "bcthrow" {
			return errBusiness
		}
		return nil
	})
}

// run is the scenario's transaction and what can be seen of it.
func (s *spring) run(t *testing.T, sc springScenario) record {
	s.reset(t)
	s.listen()
	s.lines = nil
	var err error
	if sc.bare {
		err = sc.run(t.Context(), s, nil)
	} else {
		err = s.InTx(t.Context(), func(ctx context.Context, tx handle) error {
			s.tx = tx
			return sc.run(ctx, s, tx)
		}, sc.opts...)
	}
	r := record{rows: s.notes(t), lines: s.lines}
	switch {
	case errors.Is(err, millrace.ErrUnexpectedRollback):
		r.thrown = "unexpected rollback"
	case err != nil:
		r.thrown = "error"
	}
	return r
}

func (s *spring) refused(what string, err error) {
	if err != nil {
		s.add("%s refused", what)
	}
}

type springScenario struct {
	name string // as in the record
	// same is the part in which we equal Spring: all, hooks or events. Where that is not all, why says what is
	// different on purpose, and ours what happens.
	same, why, ours string

	only []string // drivers
	opts []millrace.TxOption
	bare bool // no transaction around
	run  func(ctx context.Context, s *spring, tx handle) error
}

const (
	oneOrder = "hooks and listeners of a phase stand in one line, by Order and registration; Spring runs AFTER_COMMIT listeners late, among the afterCompletion callbacks, and puts listeners before synchronizations"
	noPhony  = "without a transaction nothing can commit: registering and emitting is refused, where Spring pretends an empty transaction, and later versions drop the event"
)

var springScenarios = []springScenario{
	{
		name: "order, two syncs + event, commit", same: "hooks", why: oneOrder,
		ours: "rows=1|A.beforeCommit|BEFORE_COMMIT(e)|B.beforeCommit|A.afterCommit|AFTER_COMMIT(e)|B.afterCommit|A.afterCompletion(COMMITTED)|AFTER_COMPLETION(e)|B.afterCompletion(COMMITTED)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "A", nil), s.emit(ctx, "e"), s.sync(ctx, "B", nil), note(ctx, tx, "1"))
		},
	},
	{
		name: "order, two syncs + event, commit", same: "events", why: oneOrder,
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "A", nil), s.emit(ctx, "e"), s.sync(ctx, "B", nil), note(ctx, tx, "1"))
		},
	},
	{name: "A.beforeCommit throws", same: "all", run: func(ctx context.Context, s *spring, tx handle) error {
		return errors.Join(s.sync(ctx, "A", faults{"beforeCommit": fails}), s.sync(ctx, "B", nil), note(ctx, tx, "1"))
	}},
	{
		name: "A.beforeCommit throws a TransactionException", why: "no kind of error commits by accident",
		ours: "thrown rows=|A.beforeCommit|A.afterCompletion(ROLLED_BACK)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "A", faults{"beforeCommit": func(context.Context) error { return millrace.ErrTxCompleted }}), note(ctx, tx, "1"))
		},
	},
	{
		name: "A.beforeCompletion throws", why: "what fails before COMMIT rolls back; Spring logs it and commits",
		ours: "thrown rows=|A.beforeCommit|B.beforeCommit|A.afterCompletion(ROLLED_BACK)|B.afterCompletion(ROLLED_BACK)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "A", nil), s.sync(ctx, "B", nil), note(ctx, tx, "1"),
				millrace.BeforeCommit(ctx, fails, millrace.Order(1)))
		},
	},
	{
		name: "A.afterCommit throws", why: "a hook's failure is reported, hides no other hook, and never makes a committed transaction look failed: callers would do it again",
		ours: "rows=1|A.beforeCommit|B.beforeCommit|A.afterCommit|B.afterCommit|A.afterCompletion(COMMITTED)|B.afterCompletion(COMMITTED)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "A", faults{"afterCommit": fails}), s.sync(ctx, "B", nil), note(ctx, tx, "1"))
		},
	},
	{name: "A.afterCompletion throws", same: "all", run: func(ctx context.Context, s *spring, tx handle) error {
		return errors.Join(s.sync(ctx, "A", faults{"afterCompletion(COMMITTED)": fails}), s.sync(ctx, "B", nil))
	}},
	{
		name: "AFTER_COMMIT event listener throws", why: "a phase is over before the next begins, for all events; the failure is contained as in Spring",
		ours: "rows=1|BEFORE_COMMIT(boom)|BEFORE_COMMIT(second)|AFTER_COMMIT(boom)|AFTER_COMMIT(second)|AFTER_COMPLETION(boom)|AFTER_COMPLETION(second)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.emit(ctx, "boom"), s.emit(ctx, "second"), note(ctx, tx, "1"))
		},
	},
	{name: "BEFORE_COMMIT event listener throws", same: "all", run: func(ctx context.Context, s *spring, tx handle) error {
		return errors.Join(s.emit(ctx, "bcthrow"), note(ctx, tx, "1"))
	}},
	{
		name: "event published inside an AFTER_COMMIT listener", why: "a listener that emits again is served; Spring drops the event",
		ours: "rows=|BEFORE_COMMIT(chain)|AFTER_COMMIT(chain)|AFTER_COMPLETION(chain)|AFTER_COMMIT(from-after-commit)|AFTER_COMPLETION(from-after-commit)",
		run:  func(ctx context.Context, s *spring, tx handle) error { return s.emit(ctx, "chain") },
	},
	{
		name: "register inside beforeCommit / afterCommit", why: "a hook that is accepted runs in full, otherwise registering it is an error; Spring runs a part of it",
		ours: "rows=|A.beforeCommit|A.bc.beforeCommit|A.afterCommit|register refused|A.bc.afterCommit|A.afterCompletion(COMMITTED)|A.bc.afterCompletion(COMMITTED)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return s.sync(ctx, "A", faults{
				"beforeCommit": func(ctx context.Context) error { return s.sync(ctx, "A.bc", nil) },
				"afterCommit":  func(ctx context.Context) error { s.refused("register", s.sync(ctx, "A.ac", nil)); return nil },
			})
		},
	},
	{name: "register inside afterCompletion", same: "all", run: func(ctx context.Context, s *spring, tx handle) error {
		return s.sync(ctx, "A", faults{"afterCompletion(COMMITTED)": func(ctx context.Context) error {
			s.refused("register", s.sync(ctx, "Z", nil))
			return nil
		}})
	}},
	{
		name: "event published in afterCommit callback", same: "events", why: "what hooks emit waits for the hooks that were there before",
		ours: "rows=|A.beforeCommit|A.afterCommit|A.afterCompletion(COMMITTED)|AFTER_COMMIT(in-afterCommit)|AFTER_COMPLETION(in-afterCommit)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return s.sync(ctx, "A", faults{"afterCommit": func(ctx context.Context) error { return s.emit(ctx, "in-afterCommit") }})
		},
	},
	{name: "inner REQUIRED throws, outer swallows", same: "all", run: func(ctx context.Context, s *spring, tx handle) error {
		err := errors.Join(note(ctx, tx, "1"), s.emit(ctx, "e"))
		_ = s.InTx(ctx, func(ctx context.Context, tx handle) error { return errors.Join(note(ctx, tx, "2"), errBusiness) })
		return err
	}},
	{name: "setRollbackOnly on the outer status", same: "all", run: func(ctx context.Context, s *spring, tx handle) error {
		return errors.Join(note(ctx, tx, "1"), s.emit(ctx, "e"), millrace.MarkRollbackOnly(ctx))
	}},
	{
		name: "NESTED rolled back, outer commits; event and sync registered inside the nested part",
		why:  "what was rolled back is not announced as committed: its hooks are told so",
		ours: "rows=1|AFTER_ROLLBACK(nested)|AFTER_COMPLETION(nested)|N.afterCompletion(ROLLED_BACK)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			err := note(ctx, tx, "1")
			_ = s.InTx(ctx, func(ctx context.Context, tx handle) error {
				return errors.Join(note(ctx, tx, "2"), s.emit(ctx, "nested"), s.sync(ctx, "N", nil), errBusiness)
			}, millrace.Nested())
			return err
		},
	},
	{
		name: "REQUIRES_NEW inner commits, outer rolls back", same: "hooks", why: oneOrder, only: []string{"pgx", "pgx-stdlib", "pq", "mysql"},
		ours: "thrown rows=2|IN.beforeCommit|BEFORE_COMMIT(inner)|IN.afterCommit|AFTER_COMMIT(inner)|IN.afterCompletion(COMMITTED)|AFTER_COMPLETION(inner)|OUT.afterCompletion(ROLLED_BACK)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "OUT", nil), note(ctx, tx, "1"), s.InTx(ctx, func(ctx context.Context, tx handle) error {
				return errors.Join(s.sync(ctx, "IN", nil), note(ctx, tx, "2"), s.emit(ctx, "inner"))
			}, millrace.RequiresNew()), errBusiness)
		},
	},
	{
		name: "NOT_SUPPORTED inside REQUIRED: event + raw sync", why: noPhony,
		ours: "rows=|emit refused|register refused|OUT.beforeCommit|OUT.afterCommit|OUT.afterCompletion(COMMITTED)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.sync(ctx, "OUT", nil), s.InTx(ctx, func(ctx context.Context, tx handle) error {
				s.refused("emit", s.emit(ctx, "ns"))
				s.refused("register", s.sync(ctx, "NS", nil))
				return nil
			}, millrace.NotSupported()))
		},
	},
	{
		name: "SUPPORTS without a transaction: event + raw sync", why: noPhony,
		ours: "rows=|emit refused|register refused", opts: []millrace.TxOption{millrace.Supports()},
		run: func(ctx context.Context, s *spring, tx handle) error {
			s.refused("emit", s.emit(ctx, "sup"))
			s.refused("register", s.sync(ctx, "SUP", nil))
			return nil
		},
	},
	{
		name: "event with no transaction", why: "never dropped in silence, unless the bus is configured to", bare: true, ours: "rows=|emit refused",
		run: func(ctx context.Context, s *spring, _ handle) error {
			s.refused("emit", s.emit(ctx, "notx"))
			return nil
		},
	},
	{
		name: "write with no new tx inside AFTER_COMMIT", why: "a write that nobody commits is refused; in Spring it depends on the driver whether it stays",
		ours: "rows=1|BEFORE_COMMIT(write)|AFTER_COMMIT(write)|write refused|AFTER_COMPLETION(write)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.emit(ctx, "write"), note(ctx, tx, "1"))
		},
	},
	{
		name: "REQUIRED TransactionTemplate inside AFTER_COMMIT", why: "the transaction is over: InTx begins a new one, which commits, where Spring joins the finished one",
		ours: "rows=1 77|BEFORE_COMMIT(required)|AFTER_COMMIT(required)|REQUIRED inside after-commit: new=true|AFTER_COMPLETION(required)",
		run: func(ctx context.Context, s *spring, tx handle) error {
			return errors.Join(s.emit(ctx, "required"), note(ctx, tx, "1"))
		},
	},
	{name: "double commit", same: "all", bare: true, run: afterTheEnd("COMMIT")},
	{name: "rollback after commit", same: "all", bare: true, run: afterTheEnd("ROLLBACK")},
}

func afterTheEnd(statement string) func(context.Context, *spring, handle) error {
	return func(ctx context.Context, s *spring, _ handle) error {
		var stale handle
		if err := s.InTx(ctx, func(_ context.Context, tx handle) error { stale = tx; return nil }); err != nil {
			return err
		}
		if err := stale.Exec(ctx, statement); errors.Is(err, millrace.ErrTxCompleted) {
			s.add("refused")
		}
		return nil
	}
}

// parse reads springScenario.ours: whether InTx returned an error, the rows that are there, the lines.
func parse(ours string) record {
	lines := strings.Split(ours, "|")
	thrown, rows, _ := strings.Cut(lines[0], "rows=")
	r := record{rows: rows, lines: lines[1:]}
	if thrown != "" {
		r.thrown = "error"
	}
	return r
}

func TestTheOrderOfCallbacksIsSpringsOrDiffersForAReason(t *testing.T) {
	records := springRecords(t)
	covered := map[string]bool{}
	var table []scenario
	for _, sc := range springScenarios {
		covered[sc.name] = true
		table = append(table, scenario{sc.name, sc.only, func(t *testing.T, e *env) {
			theirs, ok := records[sc.name]
			require.True(t, ok, "not recorded")
			got := (&spring{env: e}).run(t, sc)
			switch sc.same {
			case "all":
				require.Equal(t, theirs.String(), got.String())
				return
			case "hooks", "events":
				require.Equal(t, theirs.only(sc.same).String(), got.only(sc.same).String())
			}
			require.NotEmpty(t, sc.why, "a difference wants a reason")
			require.NotEqual(t, theirs.String(), got.String(), "no difference: %s", sc.why)
			if sc.ours != "" {
				require.Equal(t, parse(sc.ours).String(), got.String(), sc.why)
			}
		}})
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(records)), slices.Collect(maps.Keys(covered)), "every recorded scenario is compared")
	conform(t, table)
}
