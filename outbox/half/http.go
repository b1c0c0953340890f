package half

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/outbox"
)

// Schema is the JSON schema of what Handler takes and answers.
//
//go:embed schema.json
var Schema []byte

const maxBody = 8 << 20

// Handler serves half messages to producers that are not written in Go or have no access to the outbox's
// database:
//
//	POST /half                 prepare; the body is a "prepare" of the schema; 201, also if it was there
//	POST /half/{id}/commit     200
//	POST /half/{id}/rollback   200
//	GET  /half/{id}            200
//	GET  /half/schema.json     the schema
//
// Each may be repeated. Answers are a "status" of the schema, or an "error": 400 for what can never be
// accepted, 404 for an unknown id, 409 for a message that was decided otherwise or is another one, 503
// for an outage, after which the request is to be sent again.
//
// authorize is asked before anything is done, and its error answered with 403; it must not be nil.
// Requests go over the caller's own server: TLS, limits of rate and time are its part.
func (m *Messages) Handler(authorize func(r *http.Request) error) (http.Handler, error) {
	if authorize == nil {
		return nil, errors.New("half: Handler wants an authorize function: whoever reaches it can publish")
	}
	mux := http.NewServeMux()
	handle := func(pattern string, do func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := authorize(r); err != nil {
				answer(w, http.StatusForbidden, failure{Error: "not authorized"})
				return
			}
			if err := do(w, r); err != nil {
				m.fail(w, r, err)
			}
		})
	}
	handle("POST /half", m.servePrepare)
	handle("POST /half/{id}/commit", m.serveDecision(m.Commit))
	handle("POST /half/{id}/rollback", m.serveDecision(m.Rollback))
	handle("GET /half/{id}", m.serveStatus)
	handle("GET /half/schema.json", func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/schema+json")
		_, err := w.Write(Schema)
		return err
	})
	return mux, nil
}

// prepareRequest is the body of a prepare. JSON carries the payload as base64.
type prepareRequest struct {
	ID       string            `json:"id"`
	Topic    string            `json:"topic"`
	Key      string            `json:"key"`
	Metadata map[string]string `json:"metadata"`
	Payload  []byte            `json:"payload"`
	CheckURL string            `json:"check_url"`
}

type status struct {
	ID         string     `json:"id"`
	Topic      string     `json:"topic"`
	State      State      `json:"state"`
	Reason     string     `json:"reason,omitempty"`
	Checks     int        `json:"checks"`
	PreparedAt time.Time  `json:"prepared_at"`
	DecidedAt  *time.Time `json:"decided_at,omitempty"`
}

type failure struct {
	Error string `json:"error"`
}

// errRequest is a request that can never be accepted.
var errRequest = errors.New("half: bad request")

func (m *Messages) servePrepare(w http.ResponseWriter, r *http.Request) error {
	var req prepareRequest
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&req); err != nil {
		return fmt.Errorf("%w: the body is not a prepare of the schema: %w", errRequest, err)
	}
	if req.CheckURL == "" && m.checker(req.Topic) == nil {
		return fmt.Errorf("%w: %w; or name a check_url", errRequest, ErrNoChecker)
	}
	if req.CheckURL != "" {
		if m.cfg.Callback == nil {
			return fmt.Errorf("%w: check_url is not permitted here", errRequest)
		}
		if err := m.cfg.Callback.permits(req.CheckURL); err != nil {
			return fmt.Errorf("%w: %w", errRequest, err)
		}
	}
	msg := message.NewMessage(req.ID, req.Payload)
	for name, value := range req.Metadata {
		if strings.HasPrefix(name, "millrace_") {
			return fmt.Errorf("%w: metadata that begin with millrace_ are reserved", errRequest)
		}
		msg.Metadata[name] = value
	}
	if _, err := m.prepare(r.Context(), req.Topic, outbox.WithKey(msg, req.Key), "", req.CheckURL); err != nil {
		return err
	}
	return m.serve(w, r, req.ID, http.StatusCreated)
}

func (m *Messages) serveDecision(decide func(context.Context, string) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		id := r.PathValue("id")
		if err := decide(r.Context(), id); err != nil {
			return err
		}
		return m.serve(w, r, id, http.StatusOK)
	}
}

func (m *Messages) serveStatus(w http.ResponseWriter, r *http.Request) error {
	return m.serve(w, r, r.PathValue("id"), http.StatusOK)
}

func (m *Messages) serve(w http.ResponseWriter, r *http.Request, id string, code int) error {
	h, err := m.Get(r.Context(), id)
	if err != nil {
		return err
	}
	s := status{ID: h.ID, Topic: h.Topic, State: h.State, Reason: h.Reason, Checks: h.Checks, PreparedAt: h.PreparedAt}
	if !h.DecidedAt.IsZero() {
		s.DecidedAt = &h.DecidedAt
	}
	answer(w, code, s)
	return nil
}

// fail answers with what the producer can use; the rest is logged.
func (m *Messages) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, errRequest), errors.Is(err, outbox.ErrInvalidMessage):
		code = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, ErrCommitted), errors.Is(err, ErrRolledBack), errors.Is(err, ErrConflict):
		code = http.StatusConflict
	}
	text := err.Error()
	if code == http.StatusServiceUnavailable {
		m.log.WarnContext(r.Context(), "half message request not served", "error", err)
		text = "not served now, try again"
	}
	answer(w, code, failure{Error: text})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the connection has gone: nobody to tell
}
