package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
)

// A program is a tree of scopes. It is run twice, by the model and on a database, and what can be seen of the two
// must be equal: the rows and messages that stay, what ran in which order, what the callers got.
type step struct {
	do      string // write, publish, read, bad, hook, emit, mark, scope
	id      int
	phase   string // of a hook
	order   int    // of a hook
	scope   *scope // of a scope, and what a BeforeCommit hook does
	swallow bool   // the scope's error
}

type scope struct {
	kind  string // required, nested, new, savepoint, hook
	steps []step
	end   string // ok, error, panic, goexit; of a savepoint also undo, undo and release, left open
}

func (s *scope) print(b *strings.Builder, indent string) {
	for _, st := range s.steps {
		fmt.Fprintf(b, "%s%s %d", indent, st.do, st.id)
		if st.do == "hook" {
			fmt.Fprintf(b, " %s, order %d", st.phase, st.order)
		}
		if st.scope != nil {
			fmt.Fprintf(b, " %s, swallowed: %v\n", st.scope.kind, st.swallow)
			st.scope.print(b, indent+"    ")
			continue
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(b, "%s%s\n", indent, s.end)
}

// generator makes programs.
type generator struct {
	*rand.Rand
	serial int
	kinds  []string // of scopes
}

func (g *generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) scope(kind string, depth int) *scope {
	s := &scope{kind: kind}
	for range g.IntN(5) {
		g.serial++
		st := step{id: g.serial, do: g.pick("write", "write", "publish", "publish", "read", "hook", "hook", "hook", "emit", "emit", "scope", "scope", "scope", "rare")}
		switch st.do {
		case "rare":
			st.do = g.pick("bad", "mark", "mark", "write")
		case "hook":
			st.phase, st.order = g.pick("before", "committed", "rolledback", "done"), g.IntN(3)-1
			if st.phase == "before" {
				st.scope = g.scope("hook", max(depth, 3))
			}
		case "scope":
			if depth >= 4 {
				st.do = "write"
				break
			}
			st.scope, st.swallow = g.scope(g.pick(g.kinds...), depth+1), g.IntN(3) > 0
		}
		s.steps = append(s.steps, st)
	}
	s.end = g.pick("ok", "ok", "ok", "error")
	switch {
	case kind == "savepoint":
		s.end = g.pick("ok", "ok", "undo", "undo and release", "left open", "error")
	case kind == "hook":
		s.end = g.pick("ok", "ok", "ok", "ok", "ok", "ok", "ok", "error")
	}
	if g.IntN(40) == 0 {
		s.end = g.pick("panic", "goexit")
	}
	return s
}

// What callers get, by kind.
var (
	errStatement = errors.New("statement")
	errPanic     = errors.New("panic")
	errExit      = errors.New("goexit")
)

// thrown tells what passes through every caller.
func thrown(err error) bool { return errors.Is(err, errPanic) || errors.Is(err, errExit) }

func class(err error) error {
	if err == nil || thrown(err) {
		return err
	}
	for _, kind := range []error{millrace.ErrUnexpectedRollback, millrace.ErrTxAborted, errBusiness} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return errStatement
}

// model says what must happen.
type model struct {
	*journal
	fragile   bool      // a failed statement fails the transaction, as PostgreSQL has it
	committed *[]string // by this transaction and those inside of it

	state
}

// state is what ROLLBACK TO brings back.
type state struct {
	rows                   []string
	hooks                  []modelHook
	failed, doomed, giveUp bool
}

type modelHook struct {
	step
	text   string
	undone bool
	ran    bool
}

// undo brings s back, but the hooks that wait for a rollback stay.
func (m *model) undo(s state) {
	for _, h := range m.hooks[len(s.hooks):] {
		if h.phase == "rolledback" || h.phase == "done" {
			h.undone = true
			s.hooks = append(slices.Clip(s.hooks), h)
		}
	}
	for i := range m.hooks[:min(len(s.hooks), len(m.hooks))] { // a BeforeCommit hook runs once
		if i < len(s.hooks) && s.hooks[i].id == m.hooks[i].id {
			s.hooks[i].ran = m.hooks[i].ran
		}
	}
	m.state = s
}

func (m *model) save() state {
	s := m.state
	s.rows, s.hooks = slices.Clone(m.rows), slices.Clone(m.hooks)
	return s
}

func (m *model) run(s *scope) error {
	for _, st := range s.steps {
		if err := m.step(st); err != nil {
			return err
		}
	}
	switch s.end {
	case "error":
		return errBusiness
	case "panic":
		return errPanic
	case "goexit":
		return errExit
	}
	return nil
}

func (m *model) step(st step) error {
	if m.failed && st.do != "mark" && st.do != "scope" {
		return millrace.ErrTxAborted
	}
	switch st.do {
	case "write", "publish":
		m.rows = append(m.rows, st.do+strconv.Itoa(st.id))
	case "read":
		seen := slices.Concat(m.rows, *m.committed)
		m.add("read %d", len(slices.DeleteFunc(seen, func(s string) bool { return !strings.HasPrefix(s, "write") })))
	case "bad":
		m.failed = m.fragile
		return errStatement
	case "mark":
		m.giveUp = true
	case "hook":
		m.hooks = append(m.hooks, modelHook{step: st, text: fmt.Sprint(st.phase, " ", st.id)})
	case "emit":
		for _, phase := range phases {
			m.hooks = append(m.hooks, modelHook{step: step{phase: phase, id: st.id}, text: fmt.Sprint(phase, " event ", st.id)})
		}
	case "scope":
		err := m.scope(st.scope)
		if err == nil || !st.swallow || thrown(err) {
			return err
		}
		m.add("swallowed %v", err)
	}
	return nil
}

func (m *model) scope(s *scope) error {
	if s.kind == "new" { // another transaction, which knows nothing of this one
		other := &model{journal: m.journal, fragile: m.fragile, committed: m.committed}
		return other.InTx(s)
	}
	if m.failed && s.kind != "required" {
		return millrace.ErrTxAborted // it refuses the savepoint
	}
	before := m.save()
	err := m.run(s)
	switch s.kind {
	case "required":
		m.doomed = m.doomed || err != nil
	case "nested":
		switch {
		case err != nil:
		case m.giveUp:
			m.undo(before)
			return nil
		case m.doomed:
			err = millrace.ErrUnexpectedRollback
		case m.failed:
			err = millrace.ErrTxAborted
		}
		if err != nil {
			m.undo(before)
		}
	case "savepoint":
		switch {
		case err != nil || s.end == "left open":
		case s.end == "ok":
			if m.failed {
				return millrace.ErrTxAborted
			}
		default:
			m.undo(before)
		}
	}
	return err
}

// InTx is the whole of a program.
func (m *model) InTx(s *scope) error {
	err := m.run(s)
	may := err == nil && !m.failed && !m.doomed && !m.giveUp
	for round := m.takeBefore(); may && err == nil && len(round) > 0; round = m.takeBefore() {
		for _, h := range round {
			m.add("%s", h.text)
			if h.scope != nil && err == nil {
				err = m.run(h.scope)
			}
			if err != nil {
				break
			}
		}
	}
	switch {
	case err != nil:
	case m.failed:
		err = millrace.ErrTxAborted
	case m.doomed && !m.giveUp:
		err = millrace.ErrUnexpectedRollback
	}
	outcome := millrace.RolledBack
	if err == nil && !m.giveUp {
		outcome = millrace.Committed
		*m.committed = append(*m.committed, m.rows...)
	}
	m.after(outcome)
	return err
}

func (m *model) takeBefore() (round []modelHook) {
	for i := range m.hooks {
		if h := &m.hooks[i]; h.phase == "before" && !h.ran {
			h.ran = true
			round = append(round, *h)
		}
	}
	slices.SortStableFunc(round, func(a, b modelHook) int { return a.order - b.order })
	return round
}

func (m *model) after(outcome millrace.Outcome) {
	hooks := slices.Clone(m.hooks)
	slices.SortStableFunc(hooks, func(a, b modelHook) int { return a.order - b.order })
	for _, h := range hooks {
		if h.phase == "committed" && outcome == millrace.Committed || h.phase == "rolledback" && (outcome == millrace.RolledBack || h.undone) {
			m.add("%s", h.text)
		}
	}
	for _, h := range hooks {
		if h.phase == "done" {
			o := outcome
			if h.undone {
				o = millrace.RolledBack
			}
			m.add("%s %v", h.text, o)
		}
	}
}

var phases = []string{"before", "committed", "rolledback", "done"}

// real runs programs on a database.
type real struct {
	*env
	journal
	bus    *millrace.Bus
	handle handle
}

func newReal(e *env) *real {
	r := &real{env: e, bus: millrace.NewBus(millrace.BusConfig{})}
	for i, phase := range []millrace.Phase{millrace.PhaseBeforeCommit, millrace.PhaseAfterCommit, millrace.PhaseAfterRollback, millrace.PhaseAfterCompletion} {
		millrace.On(r.bus, phase, func(ctx context.Context, e placed) error {
			text := phases[i] + " event " + e.ID
			if o, ok := millrace.OutcomeOf(ctx); ok && phase == millrace.PhaseAfterCompletion {
				text += " " + o.String()
			}
			r.add("%s", text)
			return nil
		})
	}
	return r
}

func (r *real) InTx(ctx context.Context, s *scope) error {
	got := call(func() error { return r.own(ctx, s) })
	switch {
	case got.exited:
		return errExit
	case got.panicked == any(errPanic):
		return errPanic
	case got.panicked != nil:
		panic(got.panicked)
	}
	return got.err
}

// own runs s in a transaction of its own. What InnoDB shows of other transactions depends on the isolation.
func (r *real) own(ctx context.Context, s *scope, opts ...millrace.TxOption) error {
	outer := r.handle
	defer func() { r.handle = outer }()
	if r.driver != "sqlite" {
		opts = append(opts, millrace.Isolation(sql.LevelReadCommitted))
	}
	return r.env.InTx(ctx, func(ctx context.Context, tx handle) error {
		r.handle = tx
		return r.run(ctx, s)
	}, opts...)
}

func (r *real) run(ctx context.Context, s *scope) error {
	for _, st := range s.steps {
		if err := r.step(ctx, st); err != nil {
			return err
		}
	}
	switch s.end {
	case "error":
		return errBusiness
	case "panic":
		panic(errPanic)
	case "goexit":
		runtime.Goexit()
	}
	return nil
}

func (r *real) step(ctx context.Context, st step) error {
	id := strconv.Itoa(st.id)
	switch st.do {
	case "write":
		return note(ctx, r.handle, "write"+id)
	case "publish":
		return publish(ctx, r.db, "publish"+id)
	case "read":
		n, err := r.handle.Count(ctx, "SELECT COUNT(*) FROM notes WHERE note LIKE 'write%'")
		if err == nil {
			r.add("read %d", n)
		}
		return err
	case "bad":
		return r.handle.Exec(ctx, "INSERT INTO nowhere VALUES (1)")
	case "mark":
		return millrace.MarkRollbackOnly(ctx)
	case "hook":
		return r.hook(ctx, st)
	case "emit":
		return r.bus.Emit(ctx, placed{id})
	}
	err := r.scope(ctx, st)
	if err == nil || !st.swallow {
		return err
	}
	r.add("swallowed %v", class(err))
	return nil
}

func (r *real) scope(ctx context.Context, st step) error {
	if st.scope.kind == "new" {
		return r.own(ctx, st.scope, millrace.RequiresNew())
	}
	if st.scope.kind == "required" || st.scope.kind == "nested" {
		join := millrace.Required()
		if st.scope.kind == "nested" {
			join = millrace.Nested()
		}
		return r.env.InTx(ctx, func(ctx context.Context, tx handle) error { return r.run(ctx, st.scope) }, join)
	}
	name := fmt.Sprint("sp", st.id)
	if err := r.handle.Exec(ctx, "SAVEPOINT "+name); err != nil {
		return err
	}
	err := r.run(ctx, st.scope)
	if err != nil || st.scope.end == "left open" {
		return err
	}
	if st.scope.end != "ok" {
		if err := r.handle.Exec(ctx, "ROLLBACK TO SAVEPOINT "+name); err != nil || st.scope.end == "undo" {
			return err
		}
	}
	return r.handle.Exec(ctx, "RELEASE SAVEPOINT "+name)
}

// hook registers a hook. One in three after the end fails in some way, which must not matter.
func (r *real) hook(ctx context.Context, st step) error {
	text := fmt.Sprint(st.phase, " ", st.id)
	run := func(ctx context.Context) error {
		r.add("%s", text)
		switch {
		case st.scope != nil:
			return r.run(ctx, st.scope)
		case st.id%6 == 0:
			panic(errBusiness)
		case st.id%6 == 3:
			return errBusiness
		}
		return nil
	}
	order := millrace.Order(st.order)
	switch st.phase {
	case "before":
		return millrace.BeforeCommit(ctx, run, order)
	case "committed":
		return millrace.AfterCommit(ctx, run, order)
	case "rolledback":
		return millrace.AfterRollback(ctx, run, order)
	}
	return millrace.AfterCompletion(ctx, func(ctx context.Context, o millrace.Outcome) error {
		text = fmt.Sprint(text, " ", o)
		return run(ctx)
	}, order)
}

// Whatever is nested in whatever, the model knows what stays and what runs. MILLRACE_TEST_SEED repeats a failure.
func TestRandomTransactionsDoWhatTheModelSays(t *testing.T) {
	sequences := 200
	if testenv.Full() {
		sequences = 10_000
	}
	first := rand.Uint64()
	if s := os.Getenv("MILLRACE_TEST_SEED"); s != "" {
		var err error
		first, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, driver, millrace.Config{})
			kinds := []string{"required", "nested", "nested", "savepoint", "savepoint", "new"}
			if driver == "sqlite" {
				kinds = kinds[:5] // it has one writer
			}
			committed := 0
			for i := range sequences {
				seed := first + uint64(i)
				g := generator{Rand: rand.New(rand.NewPCG(seed, 0)), kinds: kinds}
				program := g.scope("outermost", 0)

				var stays []string
				m := &model{journal: &journal{}, fragile: strings.HasPrefix(driver, "p"), committed: &stays}
				want := m.InTx(program)
				slices.Sort(stays)

				e.reset(t)
				r := newReal(e)
				got := r.InTx(t.Context(), program)

				var text strings.Builder
				program.print(&text, "    ")
				about := fmt.Sprintf("MILLRACE_TEST_SEED=%d\n%s", seed, &text)
				require.Equal(t, strings.Join(m.lines, "\n"), strings.Join(r.lines, "\n"), "what ran: %s", about)
				require.Equal(t, want, class(got), "what the caller got: %v: %s", got, about)
				require.Equal(t, strings.Join(stays, " "), e.notes(t), "what stays: %s", about)
				require.Zero(t, e.inUse(), about)
				if len(stays) > 0 {
					committed++
				}
			}
			t.Logf("%d sequences from seed %d, %d left rows", sequences, first, committed)
		})
	}
}
