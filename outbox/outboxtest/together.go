package outboxtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/dberr"
	"github.com/millrace-go/millrace/outbox"
)

var togetherRules = []rule{
	{"operations that run together, some of them given up, meet no deadlock", func(s *suite) {
		c := &crowd{suite: s, until: time.Now().Add(time.Second)}
		if d, err := time.ParseDuration(os.Getenv("MILLRACE_TEST_TOGETHER")); err == nil {
			c.until = time.Now().Add(d)
		}
		ctx, cancel := context.WithDeadline(context.WithoutCancel(s.ctx), c.until.Add(time.Minute))
		defer cancel()
		c.ctx = ctx
		var group sync.WaitGroup
		for i := range 3 {
			m := &member{crowd: c, name: fmt.Sprint("replica", i)}
			for _, work := range []func(){m.keep, m.deliver, m.write, m.promote} {
				group.Go(func() {
					for !c.over() {
						work()
					}
				})
			}
		}
		for i := range 2 {
			group.Go(func() { c.publish(i) })
		}
		group.Wait()
		s.Logf("%d operations, %d given up", c.done, c.givenUp)
	}},
}

// crowd are replicas that work on one outbox, and a business that publishes into it.
type crowd struct {
	*suite
	until time.Time

	mu            sync.Mutex
	done, givenUp int
}

func (c *crowd) over() bool { return time.Now().After(c.until) }

// Where there is much to do on few processors, to wait for a second is no fault.
const (
	lockWaitTimeout  = 1205
	lockNotAvailable = "55P03"
)

// call runs an operation. One of some is given up, and goes on in the database beside its second try: what is
// tried again is what a forwarder would try again.
func (c *crowd) call(what string, op func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	hasty := rand.IntN(4) == 0
	if hasty {
		timer := time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, cancel)
		defer timer.Stop()
	}
	err := op(ctx)
	again := ctx.Err() != nil
	c.mu.Lock()
	c.done++
	if again {
		c.givenUp++
	}
	c.mu.Unlock()
	if again {
		err = op(c.ctx)
	}
	if err != nil && dberr.MySQL(err) != lockWaitTimeout && dberr.SQLState(err) != lockNotAvailable {
		c.Errorf("%s: %v", what, err)
	}
}

// publish commits messages, ready and delayed, with few keys and schedule names, and cancels some of them.
func (c *crowd) publish(writer int) {
	for n := 0; !c.over(); n++ {
		var entries []Entry
		for i := range 1 + rand.IntN(8) {
			e := Entry{ID: fmt.Sprintf("%x-%d-%d-%d", rand.Uint32(), writer, n, i), Topic: "orders", Lane: rand.IntN(outbox.Lanes)}
			switch rand.IntN(6) {
			case 0, 1, 2:
				e.Key = fmt.Sprint("k", rand.IntN(5))
			case 3:
				e.Schedule = e.ID
			case 4:
				e.Delay = time.Duration(rand.IntN(20)) * time.Millisecond
			}
			e.After = []outbox.After{0, 0, outbox.Keep}[rand.IntN(3)]
			entries = append(entries, e)
		}
		c.Insert(entries...)
		for _, e := range entries {
			if e.Schedule != "" && rand.IntN(2) == 0 {
				_ = c.Cancel(e.Schedule)
			}
		}
	}
}

// member is one replica.
type member struct {
	*crowd
	name string
	runs int

	held   sync.Mutex
	grants []outbox.Grant
}

func (m *member) holding() []outbox.Grant {
	m.held.Lock()
	defer m.held.Unlock()
	return append([]outbox.Grant(nil), m.grants...)
}

func (m *member) hold(grants []outbox.Grant) {
	m.held.Lock()
	defer m.held.Unlock()
	m.grants = append([]outbox.Grant(nil), grants...)
}

// keep is one life of a replica: it joins, takes lanes and gives some back, and leaves, or vanishes.
func (m *member) keep() {
	m.runs++
	replica := fmt.Sprintf("%s.%d", m.name, m.runs)
	if m.Store.Join(m.ctx, replica, 50*time.Millisecond) != nil {
		m.Errorf("%s cannot join", replica)
		return
	}
	beat := int64(0)
	var grants []outbox.Grant
	for range 1 + rand.IntN(12) {
		m.call("sweep", func(ctx context.Context) error { _, err := m.Store.Sweep(ctx, replica); return err })
		m.call("survey", func(ctx context.Context) error { _, err := m.Store.Survey(ctx); return err })
		m.call("renew", func(ctx context.Context) error {
			ok, err := m.Store.Renew(ctx, replica, beat, 50*time.Millisecond, nil)
			if ok {
				beat++
			}
			return err
		})
		m.call("claim", func(ctx context.Context) error {
			more, err := m.Store.Claim(ctx, replica, 1+rand.IntN(30))
			grants = append(grants, more...)
			return err
		})
		m.hold(grants)
		if len(grants) == 0 {
			continue
		}
		m.call("calm", func(ctx context.Context) error { return m.Store.Calm(ctx, grants[rand.IntN(len(grants))]) })
		if rand.IntN(3) == 0 {
			rand.Shuffle(len(grants), func(i, j int) { grants[i], grants[j] = grants[j], grants[i] })
			some := grants[:rand.IntN(len(grants))]
			m.call("release", func(ctx context.Context) error { return m.Store.Release(ctx, some) })
			grants = grants[len(some):]
		}
	}
	if rand.IntN(3) > 0 {
		m.call("leave", func(ctx context.Context) error { return m.Store.Leave(ctx, replica) })
	}
}

// some are rows of the lanes that are held.
func (m *member) some(n int) (grants []outbox.Grant, rows []outbox.Row) {
	grants = m.holding()
	if len(grants) == 0 {
		time.Sleep(time.Millisecond)
		return nil, nil
	}
	q := outbox.Read{Topics: []string{"orders"}, MaxRows: n, MaxBytes: 1 << 20}
	for _, g := range grants {
		q.Lanes = append(q.Lanes, g.Lane)
	}
	m.call("read", func(ctx context.Context) (err error) {
		rows, err = m.Store.Read(ctx, q)
		return err
	})
	return grants, rows
}

// deliver settles what has been marked where that is asked for.
func (m *member) deliver() {
	grants, rows := m.some(1 + rand.IntN(20))
	var open, refs []outbox.Ref
	for _, r := range rows {
		if r.Cancellable {
			open = append(open, r.Ref)
		} else {
			refs = append(refs, r.Ref)
		}
	}
	m.call("mark", func(ctx context.Context) error {
		marked, err := m.Store.Mark(ctx, grants, open)
		for _, r := range open {
			for _, pos := range marked {
				if r.Pos == pos {
					refs = append(refs, r)
				}
			}
		}
		return err
	})
	rand.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
	m.call("settle", func(ctx context.Context) error { _, err := m.Store.Settle(ctx, grants, refs); return err })
}

// write does what is done to a message that fails, and to those behind it.
func (m *member) write() {
	grants, rows := m.some(30)
	for _, g := range grants {
		byKey := map[string][]outbox.Row{}
		for _, r := range rows {
			if r.Lane == g.Lane && !r.Cancellable {
				byKey[r.Key] = append(byKey[r.Key], r)
			}
		}
		for key, rows := range byKey {
			m.fail(g, key, rows)
		}
	}
	m.call("topics", func(ctx context.Context) error { _, err := m.Store.Topics(ctx); return err })
}

func (m *member) fail(g outbox.Grant, key string, rows []outbox.Row) {
	first := rows[0]
	f := refused(first.Pos, first.ID, key, first.Attempts+1)
	f.RetryIn = time.Duration(rand.IntN(10)) * time.Millisecond
	if first.Attempts > 0 {
		m.call("attempt", func(ctx context.Context) error {
			_, err := m.Store.Attempt(ctx, g, first.Ref, first.Attempts+1)
			return err
		})
	}
	m.call("refuse", func(ctx context.Context) error { _, err := m.Store.Refuse(ctx, g, f); return err })
	var behind []outbox.Ref
	for _, r := range rows[1:] {
		behind = append(behind, r.Ref)
	}
	rand.Shuffle(len(behind), func(i, j int) { behind[i], behind[j] = behind[j], behind[i] })
	m.call("hold", func(ctx context.Context) error { _, err := m.Store.Hold(ctx, g, f.Destination, behind); return err })
	switch rand.IntN(3) {
	case 0:
		m.call("park", func(ctx context.Context) error { _, err := m.Store.Park(ctx, g, f); return err })
	case 1:
		m.call("lift", func(ctx context.Context) error { _, err := m.Store.Lift(ctx, g, f.Destination, key); return err })
	}
	m.call("stops", func(ctx context.Context) error { _, err := m.Store.Stops(ctx, []int{g.Lane}); return err })
}

func (m *member) promote() {
	if grants := m.holding(); len(grants) > 0 {
		rand.Shuffle(len(grants), func(i, j int) { grants[i], grants[j] = grants[j], grants[i] })
		m.call("promote", func(ctx context.Context) error { _, err := m.Store.Promote(ctx, grants); return err })
	}
	time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
}
