package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/testenv/servers"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

// The pause between two notes is no setting of an outbox. To see what another one would do, the shop sends
// the notes itself, as an outbox does: the first at once, then those of a pause together.

// debounced is a way of the shop.
func debounced(ms int) string { return fmt.Sprintf("%s, pause %d ms", withNotify, ms) }

// pauseOf reads the pause of a way back.
func pauseOf(way string) (time.Duration, bool) {
	text, ok := strings.CutPrefix(way, withNotify+", pause ")
	ms, err := strconv.Atoi(strings.TrimSuffix(text, " ms"))
	return time.Duration(ms) * time.Millisecond, ok && err == nil
}

// sendNotes tells other processes what is committed in box until it is ended. Somebody listens: without a listener a
// NOTIFY costs less.
func sendNotes(ctx context.Context, address string, box *outbox.Box, pause time.Duration) (end func(), err error) {
	waker, err := pgxtx.NewWaker(address, pgxtx.WakerConfig{})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	wake, unsubscribe := box.Subscribe()
	ready, listening, sending := make(chan struct{}), make(chan error, 1), make(chan struct{})
	go func() { listening <- waker.Listen(ctx, func() { close(ready) }, func(string) {}) }()
	go func() {
		defer close(sending)
		for {
			select {
			case <-wake.C():
			case <-ctx.Done():
				return
			}
			// As an outbox writes it: a name, and the lanes.
			if err := waker.Send(ctx, fmt.Sprintf("bench %016x", wake.Take())); err != nil && ctx.Err() == nil {
				warnings().Warn("a note was not sent", "error", err)
			}
			if pause > 0 {
				time.Sleep(pause)
			}
		}
	}()
	end = func() {
		cancel()
		<-sending
		unsubscribe()
		_ = waker.Close(context.WithoutCancel(ctx))
	}
	select {
	case <-ready:
		return end, nil
	case err := <-listening:
		end()
		return nil, errors.Join(errors.New("nobody listens"), err)
	}
}

// debounceCases: how late a message is in another process, and what the notes cost who writes.
func debounceCases(sc scale) (all []benchCase) {
	k := debounce
	for _, perSecond := range []int{200, 1000} {
		l := latency{broker: streams, rate: perSecond}
		head := fmt.Sprintf("%d/s", perSecond)
		c := k.caseOf(sc, fmt.Sprintf("latency-%d", perSecond), head, fmt.Sprintf("latency at %d messages/s to Redis, forwarder in another process", perSecond),
			latencyColumns, []column{{"p50 ms", p50, 2}, {"p99 ms", p99, 2}},
			func(v int, name string) contender {
				return contender{k.label(v), func(ctx context.Context, b *bench, round int) (Sample, error) {
					return l.measure(ctx, b, params{
						Task: "latency-millrace", Outside: true, Way: debounced(v), Rate: perSecond, Writers: 8, Cutoff: min(5*time.Second, b.scale.sweep),
						N: int(float64(perSecond) * min(b.scale.sweep, b.scale.run).Seconds()), Profile: profileFile(b.profiles, name, k.label(v), round),
					})
				}}
			})
		c.compare = nil
		all = append(all, c)
	}
	p := producer{8, driverPgx, 0}
	c := k.caseOf(sc, "producer", "8 writers", "transactions of 8 writers, native pgx", producerColumns,
		[]column{{"transactions/s", rate, 0}, {"PostgreSQL µs", serverPerMessage(string(servers.Postgres)), 0}},
		func(v int, name string) contender {
			return contender{k.label(v), func(ctx context.Context, b *bench, round int) (Sample, error) {
				return p.measure(ctx, b, params{
					Way: debounced(v), Cutoff: min(b.scale.sweep, b.scale.write), Profile: profileFile(b.profiles, name, k.label(v), round),
				})
			}}
		})
	c.contenders = append(c.contenders, contender{"no notes", func(ctx context.Context, b *bench, round int) (Sample, error) {
		return p.measure(ctx, b, params{
			Way: withOurs, Cutoff: min(b.scale.sweep, b.scale.write), Profile: profileFile(b.profiles, c.name, "no notes", round),
		})
	}})
	return append(all, c)
}
