package rabbitmq

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// channelPool lends channels, each to one batch at a time: what the broker closes a channel over then
// concerns one batch alone.
type channelPool struct {
	connector *connector
	slots     chan struct{}
	timeout   time.Duration

	mu   sync.Mutex
	idle []*confirmChannel
}

func newChannelPool(c *connector, config Config) *channelPool {
	return &channelPool{connector: c, slots: make(chan struct{}, config.Channels), timeout: config.Timeout}
}

// get lends a channel, or opens one. Each is given back by put.
func (p *channelPool) get(ctx context.Context) (*confirmChannel, error) {
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	select {
	case p.slots <- struct{}{}:
	case <-timer.C:
		return nil, fmt.Errorf("rabbitmq: no channel came free within %s", p.timeout)
	case <-ctx.Done():
		return nil, fmt.Errorf("rabbitmq: wait for a channel: %w", context.Cause(ctx))
	}
	ch, err := p.open(ctx)
	if err != nil {
		<-p.slots
	}
	return ch, err
}

func (p *channelPool) open(ctx context.Context) (*confirmChannel, error) {
	conn, err := p.connector.get(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-conn.whenBlocked():
		return nil, ErrBlocked
	default:
	}
	p.mu.Lock()
	for len(p.idle) > 0 {
		ch := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !ch.IsClosed() {
			p.mu.Unlock()
			return ch, nil
		}
	}
	p.mu.Unlock()
	return conn.confirmChannel(ctx)
}

// put takes a channel back. One on which something is unresolved is closed: it must never deliver
// anything after the batch was answered.
func (p *channelPool) put(ch *confirmChannel, resolved bool) {
	if resolved {
		p.mu.Lock()
		p.idle = append(p.idle, ch)
		p.mu.Unlock()
	} else {
		ch.conn.discard(ch.Channel)
	}
	<-p.slots
}
