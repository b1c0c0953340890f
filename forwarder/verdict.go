package forwarder

import (
	"errors"
	"slices"
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
	deferred              // refused like everything else: the destination's fault
	unknown               // the destination was not reached, or nobody knows: sent again
)

// certain are reasons that lie in the message whatever the state of the broker.
var certain = map[string]bool{"too_large": true, "encoding": true, "invalid": true}

// judge turns the answers to one call into verdicts and draws the destination's conclusions: how long it
// is left alone, and whether refusals are still believed to be the messages' fault. Changed says that
// the destination has begun or ceased to fail.
//
// A refusal is the message's own fault as long as others get through. When more than alikeLimit different
// messages were refused for one reason and none got through, it is the destination's: nothing counts until
// one gets through, and what is refused makes room for what is behind it, which may be what gets through.
func (d *destination) judge(batch []*item, errs []error, now time.Time) (verdicts []verdict, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	verdicts = make([]verdict, len(batch))
	failedKey := map[*queue]bool{}
	succeeded := slices.Contains(errs, nil)
	lost, alike := false, false
	if succeeded {
		d.alike, d.rounds, d.suspectAt, d.assumed = 0, 0, time.Time{}, 0
	}
	for i, err := range errs {
		switch it := batch[i]; {
		case err == nil:
		case it.key != nil && failedKey[it.key]:
			// Held back behind a message that failed in this call: says nothing of the destination.
			verdicts[i].kind = unknown
		default:
			v := d.blame(it, err, succeeded, now)
			lost = lost || v.kind == unknown
			alike = alike || v.kind == deferred
			if v.kind != refused {
				d.lastErr = err
			}
			verdicts[i] = v
			failedKey[it.key] = it.key != nil
		}
	}
	if last := batch[len(batch)-1]; len(batch) == 1 || alike {
		d.probed = last.row.Pos
	}
	return verdicts, d.conclude(succeeded, lost, alike, now)
}

// conclude notes how a call went and reports whether the destination has begun or ceased to fail.
func (d *destination) conclude(succeeded, lost, alike bool, now time.Time) (changed bool) {
	before := !d.downAt.IsZero()
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
	} else if alike {
		d.rounds++
		d.until = now.Add(refusalPause.Delay(d.rounds))
	}
	if succeeded {
		d.downAt = time.Time{}
	}
	down := d.failures > 0 || !d.suspectAt.IsZero()
	if down && d.downAt.IsZero() {
		d.downAt = now
	} else if !down {
		d.downAt, d.lastErr = time.Time{}, nil
	}
	return before != down
}

// blame decides whether a failed message counts an attempt. Others says that some got through with it.
func (d *destination) blame(it *item, err error, others bool, now time.Time) verdict {
	var refusal Refusal
	if !errors.As(err, &refusal) || !refusal.Refused() {
		return verdict{kind: unknown}
	}
	v := verdict{kind: refused, reason: refusal.Reason(), text: bounded(err.Error(), 500)}
	if v.reason == "" {
		v.reason = "refused"
	}
	if others || d.strict || certain[v.reason] {
		return v
	}
	if v.reason != d.reason {
		d.reason, d.alike, d.rounds, d.suspectAt = v.reason, 0, 0, time.Time{}
	}
	if it.row.Attempts == 0 && it.attempt <= 1 {
		d.alike++ // a message met for the first time
	}
	if d.alike > alikeLimit {
		v.kind = deferred
		if d.suspectAt.IsZero() {
			d.suspectAt = now
		}
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
