package forwarder

import (
	"context"
	"errors"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/died"
)

// handlerName is the name under which the forwarder appears among a router's handlers.
const handlerName = "millrace_forwarder"

// Plugin runs the forwarder with a Watermill router: router.AddPlugin(fwd.Plugin).
//
// It starts with the router's handlers and is stopped with them: Router.Run returns after the forwarder
// has finished what was in hand, if RouterConfig.CloseTimeout allows for it (its default of 30 s does). It also
// ends when all other handlers have ended, so that Run still returns when every subscription died. An outbox
// that is set up wrongly makes Router.Run fail; if that is found out later, the router is closed.
//
// The forwarder appears as a consumer handler that never gets a message.
func (f *Forwarder) Plugin(router *message.Router) error {
	if router == nil {
		return errors.New("forwarder: the router is nil")
	}
	if _, there := router.Handlers()[handlerName]; there {
		return errors.New("forwarder: the router has a forwarder already")
	}
	p := &plugin{f: f, router: router, changed: newSignal()}
	router.AddPublisherDecorators(p.watch)
	router.AddConsumerHandler(handlerName, handlerName, p, func(*message.Message) error { return nil })
	return nil
}

// plugin is the subscriber of the forwarder's handler: subscribing starts it, closing waits for it.
type plugin struct {
	f      *Forwarder
	router *message.Router

	changed signal // a handler began or ended

	mu      sync.Mutex
	begun   int // handlers, this one included
	ended   int
	stop    context.CancelFunc
	stopped chan struct{}
}

// Subscribe starts the forwarder. The channel is closed when it has stopped.
func (p *plugin) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	if err := p.f.preflight(ctx); err != nil {
		return nil, err
	}
	messages := make(chan *message.Message)
	ctx, stop := context.WithCancel(ctx)
	p.mu.Lock()
	p.stop, p.stopped = stop, make(chan struct{})
	p.mu.Unlock()
	go func() {
		defer close(p.stopped)
		defer close(messages)
		defer stop()
		end := make(chan struct{})
		go func() {
			defer close(end)
			p.awaitOthers(ctx)
			stop()
		}()
		defer func() { stop(); <-end }()
		if err := p.f.Run(ctx); err != nil {
			p.f.cfg.Logger.Error("forwarder ended", "error", err)
			died.Report(ctx, err)
			if ctx.Err() == nil {
				go p.router.Close() // it waits for this very goroutine
			}
		}
	}()
	return messages, nil
}

// Close stops the forwarder and returns when it has stopped.
func (p *plugin) Close() error {
	p.mu.Lock()
	stop, stopped := p.stop, p.stopped
	p.mu.Unlock()
	if stop == nil {
		return nil
	}
	stop()
	<-stopped
	return nil
}

// awaitOthers returns when ctx ends, or when all other handlers have ended. Without another handler, and
// before all are started, it waits.
func (p *plugin) awaitOthers(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-p.router.Running():
	}
	for {
		p.mu.Lock()
		alone := p.ended > 0 && p.begun-p.ended == 1
		p.mu.Unlock()
		if alone || !p.changed.wait(ctx, 0) {
			return
		}
	}
}

// watch counts the handlers: the router decorates the publisher of each before it starts it, and closes
// the publisher when the handler has ended. It is the only sign of a handler's end that a plugin can see.
func (p *plugin) watch(pub message.Publisher) (message.Publisher, error) {
	p.count(&p.begun)
	return &watched{Publisher: pub, plugin: p}, nil
}

func (p *plugin) count(n *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n++
	p.changed.set()
}

// watched is the publisher of a handler.
type watched struct {
	message.Publisher
	plugin *plugin
	once   sync.Once
}

// Close implements message.Publisher.
func (w *watched) Close() error {
	w.once.Do(func() { w.plugin.count(&w.plugin.ended) })
	return w.Publisher.Close()
}
