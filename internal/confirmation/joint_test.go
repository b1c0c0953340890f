package confirmation_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
)

func messages(t testing.TB, all ...confirmation.Confirmation) (said []*message.Message) {
	for _, c := range all {
		m, err := c.Message()
		require.NoError(t, err)
		said = append(said, m)
	}
	return said
}

func about(id string) confirmation.Confirmation {
	return confirmation.Confirmation{ID: id, Group: "g", Outcome: confirmation.Done, Sending: 1, At: time.Unix(1, 0).UTC()}
}

func TestConfirmationsTravelTogetherThereAndBack(t *testing.T) {
	t.Parallel()
	key := []byte(strings.Repeat("k", 32))
	failed := confirmation.Confirmation{ID: "n", Group: "h", Outcome: confirmation.Failed, Reason: "r", At: time.Unix(2, 0).UTC()}
	sent := []confirmation.Confirmation{about("m").Sign(key), failed.Sign(key), about("m").Sign(key)}
	joint := confirmation.Join(messages(t, sent...))
	said := confirmation.ParseAll(joint.Payload, [][]byte{key})
	require.Len(t, said, 3)
	for i, s := range said {
		require.NoError(t, s.Err)
		require.Equal(t, sent[i], s.Confirmation)
	}

	alone := messages(t, sent[0])
	require.Same(t, alone[0], confirmation.Join(alone))
	said = confirmation.ParseAll(alone[0].Payload, [][]byte{key})
	require.Equal(t, []confirmation.Said{{Confirmation: sent[0]}}, said)
}

// What removes duplicates by the id must not remove a word that was not heard.
func TestTheIDOfConfirmationsThatTravelTogetherIsThatOfWhatTheySay(t *testing.T) {
	t.Parallel()
	id := func(all ...confirmation.Confirmation) string { return confirmation.Join(messages(t, all...)).UUID }
	a, b, c := about("a"), about("b"), about("c")
	later := a
	later.At = time.Unix(9, 0)
	failed := a
	failed.Outcome = confirmation.Failed
	again := failed
	again.Sending = 2
	require.Equal(t, id(a, b), id(later, b), "a copy is a duplicate")
	seen := map[string]bool{}
	for _, said := range [][]confirmation.Confirmation{{a}, {b}, {a, b}, {b, a}, {a, b, c}, {a, a}, {failed, b}, {again, b}} {
		require.False(t, seen[id(said...)])
		seen[id(said...)] = true
	}
}

func TestOneThatIsNoneSpoilsNoOther(t *testing.T) {
	t.Parallel()
	key, other := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("o", 32))
	text := func(c confirmation.Confirmation) string {
		out, err := json.Marshal(c)
		require.NoError(t, err)
		return string(out)
	}
	long := about("m")
	long.Reason = strings.Repeat("x", 5000)
	members := []string{
		text(about("signed").Sign(key)), text(about("forged").Sign(other)), `null`, `7`, `{}`, `[]`, `[{}]`, `"text"`, text(long), text(about("unsigned")),
		text(about("also signed").Sign(key)),
	}
	said := confirmation.ParseAll([]byte(" \n["+strings.Join(members, " ,\t")+"]"), [][]byte{key})
	require.Len(t, said, len(members))
	for i, s := range said {
		switch i {
		case 0, len(said) - 1:
			require.NoError(t, s.Err)
		case 1, len(said) - 2:
			require.ErrorIs(t, s.Err, confirmation.ErrUnsigned)
			require.NotEmpty(t, s.ID, "what it claims")
		default:
			require.Error(t, s.Err)
			require.NotErrorIs(t, s.Err, confirmation.ErrUnsigned)
		}
	}
}

func TestAMessageOfConfirmationsThatIsNoneIsRefusedAsAWhole(t *testing.T) {
	t.Parallel()
	one, err := json.Marshal(about("m"))
	require.NoError(t, err)
	many := func(n int) string { return "[" + strings.Repeat(string(one)+",", n-1) + string(one) + "]" }
	for name, payload := range map[string]string{
		"nothing": ``, "an empty array": `[]`, "cut off": `[` + string(one), "two": many(2) + many(2), "too many": many(confirmation.MaxJoint + 1),
		"too large": "[" + strings.Repeat(" ", confirmation.MaxJointBytes) + string(one) + "]",
	} {
		said := confirmation.ParseAll([]byte(payload), nil)
		require.Len(t, said, 1, name)
		require.Error(t, said[0].Err, name)
	}
	said := confirmation.ParseAll([]byte(many(confirmation.MaxJoint)), nil)
	require.Len(t, said, confirmation.MaxJoint)
	for _, s := range said {
		require.NoError(t, s.Err)
	}
}

func TestWhatFitsIntoOneMessageIsReadBackFromIt(t *testing.T) {
	t.Parallel()
	for _, length := range []int{1, 30, 100} { // of the group; in JSON six times as much
		var all []confirmation.Confirmation
		for i := range 600 {
			id := fmt.Sprint(i)
			all = append(all, about(strings.Repeat("\x01", 64-len(id))+id))
			all[i].Group = strings.Repeat("\x02", length)
			if length == 1 {
				all[i].ID = id
			}
		}
		read := 0
		for said := messages(t, all...); len(said) > 0; {
			n := confirmation.Fit(said)
			require.Positive(t, n)
			require.LessOrEqual(t, n, confirmation.MaxJoint)
			if length == 1 {
				require.Equal(t, min(len(said), confirmation.MaxJoint), n)
			}
			joint := confirmation.Join(said[:n])
			require.LessOrEqual(t, len(joint.Payload), confirmation.MaxJointBytes)
			for _, s := range confirmation.ParseAll(joint.Payload, nil) {
				require.NoError(t, s.Err)
				require.Equal(t, all[read], s.Confirmation)
				read++
			}
			said = said[n:]
		}
		require.Equal(t, len(all), read)
	}
}

func TestOfWhatAGroupSaysTwiceTheWordThatCountsIsLeft(t *testing.T) {
	t.Parallel()
	say := func(id, group string, outcome confirmation.Outcome, sending int) confirmation.Confirmation {
		return confirmation.Confirmation{ID: id, Group: group, Outcome: outcome, Sending: sending}
	}
	done, failed := confirmation.Done, confirmation.Failed
	all := []confirmation.Confirmation{
		say("m", "h", failed, 2), say("m", "g", failed, 1), say("l", "g", done, 1), say("m", "g", done, 1), say("m", "h", failed, 1), say("m", "g", failed, 2),
	}
	first := all[0]
	require.Equal(t, []confirmation.Confirmation{say("l", "g", done, 1), say("m", "g", done, 1), say("m", "h", failed, 2)}, confirmation.Counting(all))
	require.Equal(t, first, all[0], "what it is given stays as it is")
	require.Empty(t, confirmation.Counting(nil))
}

func FuzzParseAll(f *testing.F) {
	f.Add([]byte(`{"id":"m","group":"g","outcome":"done","at":"2026-01-02T03:04:05Z"}`), []byte{})
	f.Add([]byte(`[{"id":"m","group":"g","outcome":"failed","reason":"r"},{"id":"n","group":"g","outcome":"done","sending":3}]`), []byte{})
	f.Add([]byte(` [{"id":"m","group":"g","outcome":"done"},7,null,[[]]]`), []byte(strings.Repeat("k", 32)))
	f.Add([]byte(`[`), []byte{})
	f.Fuzz(func(t *testing.T, payload, key []byte) {
		var keys [][]byte
		if len(key) > 0 {
			keys = [][]byte{key}
		}
		said := confirmation.ParseAll(payload, keys)
		require.NotEmpty(t, said)
		require.LessOrEqual(t, len(said), confirmation.MaxJoint)
		var words []confirmation.Confirmation
		for _, s := range said {
			if s.Err == nil {
				require.True(t, len(keys) == 0 || s.SignedBy(keys...))
				words = append(words, s.Confirmation)
			}
		}
		require.LessOrEqual(t, len(confirmation.Counting(words)), len(words))
		var back []confirmation.Confirmation
		for parts := messages(t, words...); len(parts) > 0; {
			n := confirmation.Fit(parts)
			for _, s := range confirmation.ParseAll(confirmation.Join(parts[:n]).Payload, keys) {
				require.NoError(t, s.Err)
				back = append(back, s.Confirmation)
			}
			parts = parts[n:]
		}
		require.Len(t, back, len(words))
		for i := range words {
			require.True(t, words[i].At.Equal(back[i].At))
			words[i].At, back[i].At = time.Time{}, time.Time{}
			require.Equal(t, words[i], back[i])
		}
	})
}
