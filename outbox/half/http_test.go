package half_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox/half"
)

// api serves half messages to a remote producer, and is that producer.
type api struct {
	*scene
	m   *half.Messages
	url string
}

func newAPI(t *testing.T, cfg half.Config) *api {
	t.Helper()
	s := newScene(t, [2]database{postgres, sqlite})
	m := s.messages(cfg)
	h, err := m.Handler(func(r *http.Request) error {
		if r.Header.Get("Authorization") != "let me in" {
			return errors.New("no")
		}
		return nil
	})
	require.NoError(t, err)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return &api{scene: s, m: m, url: server.URL}
}

func (a *api) call(method, path, body string) (code int, answer map[string]any) {
	a.Helper()
	req, err := http.NewRequestWithContext(a.Context(), method, a.url+path, strings.NewReader(body))
	require.NoError(a, err)
	req.Header.Set("Authorization", "let me in")
	resp, err := http.DefaultTransport.(*http.Transport).Clone().RoundTrip(req)
	require.NoError(a, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(a, err)
	require.NoError(a, json.Unmarshal(text, &answer), "%s", text)
	return resp.StatusCode, answer
}

func TestRemoteProducersPrepareAndDecide(t *testing.T) {
	t.Parallel()
	a := newAPI(t, half.Config{FirstCheck: time.Hour, Checkers: map[string]half.Checker{"orders": never}})
	const body = `{"id":"m","topic":"orders","key":"k","metadata":{"colour":"red"},"payload":"aGVsbG8="}`
	for range 2 { // each request may be repeated
		code, answer := a.call("POST", "/half", body)
		require.Equal(t, http.StatusCreated, code, answer)
		require.Equal(t, "prepared", answer["state"])
	}
	code, answer := a.call("POST", "/half", strings.Replace(body, "aGVsbG8=", "aGVsbA==", 1))
	require.Equal(t, http.StatusConflict, code, answer)
	for range 2 {
		code, answer = a.call("POST", "/half/m/commit", "")
		require.Equal(t, http.StatusOK, code, answer)
		require.Equal(t, "committed", answer["state"])
	}
	require.Equal(t, 1, a.sent("m"))
	code, answer = a.call("POST", "/half/m/rollback", "")
	require.Equal(t, http.StatusConflict, code, answer)
	code, _ = a.call("GET", "/half/m", "")
	require.Equal(t, http.StatusOK, code)
	code, _ = a.call("GET", "/half/unknown", "")
	require.Equal(t, http.StatusNotFound, code)
	code, answer = a.call("GET", "/half/schema.json", "")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, answer["$defs"], "prepare")
}

func TestBadRequestsAreRefusedAndStoreNothing(t *testing.T) {
	t.Parallel()
	a := newAPI(t, half.Config{Checkers: map[string]half.Checker{"orders": never}})
	for what, body := range map[string]string{
		"no JSON":             `{`,
		"unknown field":       `{"id":"m","topic":"orders","payload":"","paylaod":""}`,
		"no id":               `{"topic":"orders","payload":""}`,
		"id too long":         `{"id":"` + strings.Repeat("x", 65) + `","topic":"orders","payload":""}`,
		"nobody checks back":  `{"id":"m","topic":"invoices","payload":""}`,
		"check_url":           `{"id":"m","topic":"orders","payload":"","check_url":"http://example.com/"}`,
		"reserved metadata":   `{"id":"m","topic":"orders","payload":"","metadata":{"millrace_key":"k"}}`,
		"payload not base64":  `{"id":"m","topic":"orders","payload":"?"}`,
		"payload too large":   `{"id":"m","topic":"orders","payload":"` + strings.Repeat("AAAA", 1<<19) + `"}`,
		"body without an end": `{"id":"m","topic":"orders","payload":"` + strings.Repeat("AAAA", 3<<20) + `"}`,
	} {
		code, answer := a.call("POST", "/half", body)
		require.Equal(t, http.StatusBadRequest, code, "%s: %v", what, answer)
		require.NotEmpty(t, answer["error"], what)
	}
	require.Zero(t, a.one(a.outRaw, `SELECT count(*) FROM millrace_half`))

	resp, err := http.Post(a.url+"/half/m/commit", "application/json", bytes.NewReader(nil))
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
	_, err = a.m.Handler(nil)
	require.Error(t, err)
}

func TestARemoteProducerIsCheckedBackByHTTP(t *testing.T) {
	t.Parallel()
	var answer atomic.Value
	answer.Store("")
	business := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch text := answer.Load().(string); text {
		case "500":
			w.WriteHeader(http.StatusInternalServerError)
		case "elsewhere":
			http.Redirect(w, r, "/checks/other", http.StatusTemporaryRedirect)
		default:
			_, _ = io.WriteString(w, text)
		}
	}))
	defer business.Close()
	a := newAPI(t, half.Config{
		MaxChecks: 2, MaxAge: time.Millisecond,
		Callback: &half.Callback{Allow: []string{business.URL + "/checks"}, AllowLocal: true},
	})
	a.run(a.m)
	prepare := func(id string) {
		code, got := a.call("POST", "/half", `{"id":"`+id+`","topic":"orders","payload":"","check_url":"`+business.URL+`/checks/1"}`)
		require.Equal(t, http.StatusCreated, code, got)
	}
	for i, text := range []string{
		"", "{}", "committed", `{"verdict":"COMMITTED"}`, `{"verdict":true}`, `{"error":"committed"}`, `{"verdict":"unknown"}`, "500", "elsewhere",
	} {
		answer.Store(text)
		id := string(rune('a' + i))
		prepare(id)
		a.awaits(a.m, id, half.Parked)
	}
	answer.Store(`{"verdict":"committed"}`)
	prepare("yes")
	a.awaits(a.m, "yes", half.Committed)
	answer.Store(`{"verdict":"rolled_back"}`)
	prepare("no")
	a.awaits(a.m, "no", half.Ended)
	require.Equal(t, 1, a.one(a.outRaw, `SELECT count(*) FROM millrace_outbox`))
}

func TestACheckURLMustBePermitted(t *testing.T) {
	t.Parallel()
	a := newAPI(t, half.Config{Callback: &half.Callback{Allow: []string{"https://orders.internal/checks/"}}})
	for url, permitted := range map[string]bool{
		"https://orders.internal/checks/7?a=b":        true,
		"https://ORDERS.internal/checks/7":            true,
		"https://orders.internal/checks":              true,
		"https://orders.internal/checksum":            false,
		"https://orders.internal/checks/../admin":     false,
		"https://orders.internal/checks/%2e%2e/admin": false,
		"http://orders.internal/checks/7":             false,
		"https://orders.internal:8443/checks/7":       false,
		"https://orders.internal@evil.example/checks": false,
		"https://me:secret@orders.internal/checks/":   false,
		"https://orders.internal.evil.example/checks": false,
		"file:///etc/passwd":                          false,
		"//orders.internal/checks":                    false,
	} {
		code, answer := a.call("POST", "/half", `{"id":"`+"m"+url[len(url)-4:]+`","topic":"orders","payload":"","check_url":"`+url+`"}`)
		require.Equal(t, permitted, code == http.StatusCreated, "%s: %v", url, answer)
		require.NotContains(t, fmt.Sprint(answer), "secret")
	}
}

func TestMessagesKeepTheirOwnCopyOfACallback(t *testing.T) {
	t.Parallel()
	shared := &half.Callback{Allow: []string{"https://first.internal/"}}
	first := newAPI(t, half.Config{Callback: shared})
	shared.Allow = []string{"https://second.internal/"}
	second := newAPI(t, half.Config{Callback: shared})
	for who, a := range map[string]*api{"first": first, "second": second} {
		code, answer := a.call("POST", "/half", `{"id":"m","topic":"orders","payload":"","check_url":"https://`+who+`.internal/"}`)
		require.Equal(t, http.StatusCreated, code, answer)
	}
}

func TestACheckDoesNotReachLocalAddresses(t *testing.T) {
	t.Parallel()
	reached := false
	business := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer business.Close()
	a := newAPI(t, half.Config{MaxChecks: 1, Callback: &half.Callback{Allow: []string{business.URL}}})
	code, answer := a.call("POST", "/half", `{"id":"m","topic":"orders","payload":"","check_url":"`+business.URL+`"}`)
	require.Equal(t, http.StatusCreated, code, answer)
	a.run(a.m)
	require.Contains(t, a.awaits(a.m, "m", half.Parked).LastError, "local address")
	require.False(t, reached)
}
