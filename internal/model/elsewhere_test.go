package model_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/outbox/half"
)

// order has a business without SQL do what a deal is about. An error does not say that it was not done, unless the
// business refuses it: then it never does it any more.
func (w *world) order(l *life, d *deal) error {
	n, err := l.step("order " + d.id)
	if err != nil {
		return err
	}
	name := fmt.Sprint(l.name, "/order ", d.id, "/", n)
	w.dawdle(l, name)
	switch {
	case l.over():
		return errDead
	case w.strikes(w.chaos.callFails, name, "fails"):
		return errAway
	case w.strikes(w.chaos.callLate, name, "late"):
		w.mu.Lock()
		d.coming++
		w.mu.Unlock()
		saw(sawLate)
		w.later(w.tardiness(name), func() {
			_ = w.does(d)
			w.mu.Lock()
			d.coming--
			w.mu.Unlock()
		})
		return errAway
	}
	err = w.does(d)
	if w.strikes(w.chaos.callLost, name, "lost") {
		return errAway
	}
	if _, gone := l.step("answer to order"); gone != nil {
		return gone
	}
	w.dawdle(l, name, "answered")
	if err == nil { // who hears it lets the message go
		w.mu.Lock()
		d.let = true
		w.mu.Unlock()
	}
	return err
}

// does is the business: once, or never.
func (w *world) does(d *deal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case d.done:
	case d.refused, d.ends:
		d.refused = true
		return half.NothingDone(errBusiness)
	default:
		w.happens(d)
	}
	return nil
}

// finds is what the business says of a deal when it looks.
func (w *world) finds(d *deal) half.Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case d.done:
		d.calledCommitted = true
		return half.WasCommitted
	case d.refused, !d.careful: // it may merely be early
		d.calledRolledBack = true
		return half.WasRolledBack
	}
	return half.Unknown
}

// checker is the function that the business gives to whoever checks back.
func (w *world) checker(l *life) half.Checker {
	return func(ctx context.Context, m half.Info) (half.Verdict, error) {
		w.mu.Lock()
		d := w.deal(m.ID)
		w.mu.Unlock()
		name := fmt.Sprint(l.name, "/look for ", d.id, "/", l.nth("look for "+d.id))
		if !w.strikes(w.chaos.nonsense, name, "nonsense") {
			return w.finds(d), nil
		}
		saw(sawNonsense)
		switch w.fate(7, name, "which") {
		case 0:
			return half.Unknown, errAway
		case 1:
			return half.WasCommitted, errAway
		case 2:
			return half.WasRolledBack, errAway
		case 3:
			return half.WasRolledBack + 1, nil
		case 4:
			panic("model: the checker")
		case 5: // it looks, and answers when nobody may be waiting any more
			v := w.finds(d)
			backoff.Sleep(l.ctx, w.tardiness(name))
			return v, nil
		default:
			<-ctx.Done()
			return half.WasCommitted, ctx.Err()
		}
	}
}

// checkURL is where a remote producer is asked.
const checkURL = "http://shop.example/checks/"

// wire puts the model's network under the callbacks. Nobody else may: their client refuses addresses. So there is no
// way but this one.
func (w *world) wire(l *life, m *half.Messages) {
	client := reflect.ValueOf(m).Elem().FieldByName("cfg").FieldByName("Callback").Elem().FieldByName("client")
	transport := (*http.Client)(client.UnsafePointer()).Transport.(*http.Transport)
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		name := fmt.Sprint(l.name, "/dial/", l.nth("dial"))
		if w.strikes(w.chaos.callFails, name, "fails") {
			return nil, errAway
		}
		here, there := net.Pipe()
		go w.answer(there, name)
		return here, nil
	}
}

// answer is the remote producer: it answers one request on a connection, and hangs up.
func (w *world) answer(conn net.Conn, name string) {
	defer conn.Close()
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return // hung up
	}
	var body struct {
		ID string `json:"id"`
	}
	if err := json.NewDecoder(req.Body).Decode(&body); err != nil || req.URL.Path != "/checks/"+body.ID {
		w.mu.Lock()
		w.wrong("a callback asks %s for %q: %v", req.URL.Path, body.ID, err)
		w.mu.Unlock()
		return
	}
	w.mu.Lock()
	d := w.deal(body.ID)
	w.mu.Unlock()
	text := "HTTP/1.1 200 OK\r\n\r\n"
	switch committed := `{"verdict":"committed"}`; {
	case !w.strikes(w.chaos.nonsense, name, "nonsense"):
		text += fmt.Sprintf(`{"verdict":%q}`, word(w.finds(d)))
	default:
		saw(sawBadReply)
		switch w.fate(8, name, "which") {
		case 0:
			text = "HTTP/1.1 404 Not Found\r\n\r\n" + committed
		case 1:
			text = "HTTP/1.1 503 Service Unavailable\r\n\r\n" + strings.Replace(committed, "committed", "rolled_back", 1)
		case 2:
			text = "HTTP/1.1 307 Temporary Redirect\r\nLocation: " + checkURL + "other\r\n\r\n" + committed
		case 3:
			text += strings.TrimSuffix(committed, "}") // cut short
		case 4:
			text += strings.ToUpper(committed)
		case 5:
			text += []string{"", "null", "[]", `"committed"`, `{"verdict":true}`, `{"error":"committed"}`, "<html>committed"}[w.fate(7, name, "body")]
		case 6:
			text = "committed\r\n"
		default: // no answer
			_, _ = io.Copy(io.Discard, conn)
			return
		}
	}
	_, _ = io.WriteString(conn, text)
}

// word is how an answer is written.
func word(v half.Verdict) string {
	switch v {
	case half.WasCommitted:
		return "committed"
	case half.WasRolledBack:
		return "rolled_back"
	case half.Unknown:
		return "unknown"
	}
	panic(errors.New("model: no such verdict"))
}

// dawdle is a step that may take its time, up to longer than any limit.
func (w *world) dawdle(l *life, parts ...any) {
	wait := time.Duration(w.fate(30, append(parts, "takes")...)) * time.Millisecond
	if w.strikes(w.chaos.dawdles, append(parts, "dawdles")...) {
		wait = w.tardiness(parts...)
	}
	backoff.Sleep(l.ctx, wait)
}
