package forwarder

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"
)

// verdict is what an answer of the publisher means for one message.
type verdict struct {
	kind   verdictKind
	reason string
	text   string
}

type verdictKind int8

const (
	delivered verdictKind = iota
	refused               // the message's fault: counts
	unknown               // the destination's fault, or nobody knows: sent again
)

// certain are reasons that lie in the message whatever the state of the broker.
var certain = map[string]bool{"too_large": true, "encoding": true, "invalid": true}

// judge turns the answers to one call into verdicts and draws the destination's conclusions: how long it
// is left alone, and whether refusals are still believed to be the messages' fault. Changed says that
// the destination has begun or ceased to fail.
func (d *destination) judge(batch []*item, errs []error, now time.Time) (verdicts []verdict, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	verdicts = make([]verdict, len(batch))
	failedKey := map[*queue]bool{}
	succeeded, lost := false, false
	for i, err := range errs {
		switch it := batch[i]; {
		case err == nil:
			succeeded, d.alike = true, 0
		case it.key != nil && failedKey[it.key]:
			// Held back behind a message that failed in this call: says nothing of the destination.
			verdicts[i].kind = unknown
		default:
			verdicts[i] = d.blame(it, err)
			if verdicts[i].kind == unknown {
				lost, d.lastErr = true, err
			}
			failedKey[it.key] = it.key != nil
		}
	}
	before := d.failures
	if len(batch) == 1 {
		d.probed = batch[0].row.Pos
	}
	switch {
	case lost && succeeded:
		d.failures = 1
	case lost:
		d.failures++
	default:
		d.failures = 0
	}
	if lost {
		d.until = now.Add(outage.Delay(d.failures))
	}
	if d.failures == 0 {
		d.lastErr = nil
	}
	return verdicts, (before == 0) != (d.failures == 0)
}

// blame decides whether a failed message counts an attempt.
func (d *destination) blame(it *item, err error) verdict {
	var refusal Refusal
	if !errors.As(err, &refusal) || !refusal.Refused() {
		return verdict{kind: unknown}
	}
	v := verdict{kind: refused, reason: refusal.Reason(), text: bounded(err.Error(), 500)}
	if v.reason == "" {
		v.reason = "refused"
	}
	if certain[v.reason] {
		return v
	}
	if v.reason != d.reason {
		d.reason, d.alike = v.reason, 0
	}
	if it.row.Attempts == 0 && it.attempt <= 1 {
		d.alike++ // a message met for the first time
	}
	if d.alike > alikeLimit {
		v.kind = unknown
	}
	return v
}

// bounded cuts a text to at most n bytes of valid UTF-8 without control characters.
func bounded(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text)
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
