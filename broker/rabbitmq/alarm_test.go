package rabbitmq_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/broker/rabbitmq"
	"github.com/millrace-go/millrace/internal/testenv"
)

// alarm stands between a client and the broker and does what the broker does when it is short of memory:
// it says connection.blocked to who publishes, and reads no more from it.
type alarm struct {
	Addr string

	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu    sync.Mutex
	free  *sync.Cond
	on    bool
	ended bool
	links []*alarmed
}

type alarmed struct {
	client, server net.Conn
	writing        sync.Mutex // one frame at a time to the client
	told           bool
}

const (
	blocked   = 60
	unblocked = 61
)

func newAlarm(t *testing.T, brokerURL string) (string, *alarm) {
	t.Helper()
	u, err := url.Parse(brokerURL)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &alarm{Addr: listener.Addr().String(), listener: listener, target: u.Host}
	a.free = sync.NewCond(&a.mu)
	a.wg.Go(a.accept)
	t.Cleanup(a.close)
	u.Host = a.Addr
	return u.String(), a
}

func (a *alarm) accept() {
	for {
		client, err := a.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", a.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l := &alarmed{client: client, server: server}
		a.mu.Lock()
		a.links = append(a.links, l)
		a.mu.Unlock()
		a.wg.Go(func() { a.up(l) })
		a.wg.Go(func() { a.down(l) })
	}
}

// up passes on what the client sends. While the alarm is on, a publish (class 60, method 40) is the last
// that is read.
func (a *alarm) up(l *alarmed) {
	defer l.close()
	if _, err := io.CopyN(l.server, l.client, 8); err != nil { // the protocol header
		return
	}
	for {
		frame, err := readFrame(l.client)
		if err != nil {
			return
		}
		publish := frame[0] == 1 && len(frame) > 11 && frame[8] == 60 && frame[10] == 40
		a.mu.Lock()
		if a.on && publish {
			l.told = true
			l.tell(blocked)
			for a.on && !a.ended {
				a.free.Wait()
			}
		}
		a.mu.Unlock()
		if _, err := l.server.Write(frame); err != nil {
			return
		}
	}
}

func (a *alarm) down(l *alarmed) {
	defer l.close()
	for {
		frame, err := readFrame(l.server)
		if err != nil {
			return
		}
		l.writing.Lock()
		_, err = l.client.Write(frame)
		l.writing.Unlock()
		if err != nil {
			return
		}
	}
}

func readFrame(from io.Reader) ([]byte, error) {
	head := make([]byte, 7)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	frame := append(head, make([]byte, binary.BigEndian.Uint32(head[3:])+1)...)
	_, err := io.ReadFull(from, frame[7:])
	return frame, err
}

func (l *alarmed) tell(method byte) {
	payload := []byte{0, 10, 0, method}
	if method == blocked {
		payload = append(payload, 10)
		payload = append(payload, "low memory"...)
	}
	frame := append([]byte{1, 0, 0, 0, 0, 0, byte(len(payload))}, payload...)
	l.writing.Lock()
	defer l.writing.Unlock()
	_, _ = l.client.Write(append(frame, 0xce))
}

func (l *alarmed) close() {
	_ = l.client.Close()
	_ = l.server.Close()
}

func (a *alarm) set(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.on = on
	if on {
		return
	}
	for _, l := range a.links {
		if l.told {
			l.told = false
			l.tell(unblocked)
		}
	}
	a.free.Broadcast()
}

func (a *alarm) close() {
	a.mu.Lock()
	a.ended = true
	a.free.Broadcast()
	for _, l := range a.links {
		l.close()
	}
	a.mu.Unlock()
	_ = a.listener.Close()
	a.wg.Wait()
}

func TestABrokerThatBlocksPublishersIsToldAtOnceAndGetsNoCopies(t *testing.T) {
	direct := testenv.RabbitMQ(t)
	url, a := newAlarm(t, direct)
	config := queueConfig(url)
	config.Timeout = 5 * time.Second
	p := newPublisher(t, config)
	require.NoError(t, p.Publish("orders", messages(1)...))

	a.set(true)
	msgs := messages(100)
	errs := publish(t, p, "orders", msgs)
	require.ErrorIs(t, errs[99], rabbitmq.ErrBlocked)
	// For longer than Timeout the same batch is tried: it must not be sent again and again.
	goroutines, start, calls := runtime.NumGoroutine(), time.Now(), 0
	for ; calls < 20 || time.Since(start) < config.Timeout+time.Second; calls++ {
		for _, err := range publish(t, p, "orders", msgs) {
			require.ErrorIs(t, err, rabbitmq.ErrBlocked)
			require.Empty(t, reason(err))
		}
	}
	require.Less(t, time.Since(start), 20*config.Timeout, "%d calls: each waited for the broker", calls)
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines+10)

	a.set(false)
	testenv.Eventually(t, time.Minute, "a confirm", func() bool { return publish(t, p, "orders", messages(1))[0] == nil })
	for _, err := range publish(t, p, "orders", msgs) {
		require.NoError(t, err)
	}
	copies := map[string]int{}
	for _, d := range drain(t, raw(t, direct), "orders") {
		id, _ := d.Headers[amqp.DefaultMessageUUIDHeaderKey].(string)
		copies[id]++
	}
	for _, m := range msgs {
		require.Positive(t, copies[m.UUID])
		require.LessOrEqual(t, copies[m.UUID], 2, "copies of a message")
	}

	a.set(true)
	require.ErrorIs(t, p.Publish("orders", messages(1)...), rabbitmq.ErrBlocked)
	start = time.Now()
	require.NoError(t, p.Close())
	require.Less(t, time.Since(start), 30*time.Second)
}

func TestMessagesThatReachNobodyAreRefusedHoweverManyAtOnce(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, rabbitmq.Config{URL: testenv.RabbitMQ(t)})
	errs := p.PublishBatch(t.Context(), slices.Repeat([]string{"nobody"}, 2500), messages(2500))
	for _, err := range errs {
		require.Equal(t, "no_route", reason(err))
		require.True(t, strings.Contains(err.Error(), `exchange "nobody"`), "%v", err)
	}
}
