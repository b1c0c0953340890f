package rabbitmq

import (
	"context"
	"fmt"
	"time"
)

// patience is how long a batch waits: to the end of its context, while the broker takes messages,
// and until nothing has happened for Config.Timeout, or a quarter more.
type patience struct {
	ctx      context.Context
	conn     *connection
	progress func() int // grows as long as something happens

	tick  *time.Ticker
	seen  int // progress at the last tick
	quiet int // ticks without
}

// ticks is how often progress is looked for within Config.Timeout.
const ticks = 4

func newPatience(ctx context.Context, conn *connection, progress func() int) *patience {
	return &patience{ctx: ctx, conn: conn, progress: progress, tick: time.NewTicker(max(1, conn.config.Timeout/ticks))}
}

func (p *patience) end() { p.tick.Stop() }

// over notes a tick, and reports whether it is the last one.
func (p *patience) over() bool {
	if now := p.progress(); now != p.seen {
		p.seen, p.quiet = now, 0
		return false
	}
	p.quiet++
	return p.quiet >= ticks
}

func await[T any](p *patience, from <-chan T) (T, error) {
	var none T
	select {
	case v := <-from:
		return v, nil
	default:
	}
	blocked := p.conn.whenBlocked()
	for {
		select {
		case v := <-from:
			return v, nil
		case <-p.ctx.Done():
			return none, fmt.Errorf("rabbitmq: not confirmed: %w", context.Cause(p.ctx))
		case <-blocked:
			return none, ErrBlocked
		case <-p.tick.C:
			if p.over() {
				return none, ErrUnconfirmed
			}
		}
	}
}
