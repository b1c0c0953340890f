package confirmation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
)

func TestAConfirmationTravelsThereAndBack(t *testing.T) {
	t.Parallel()
	c := confirmation.Confirmation{ID: "m", Group: "billing", Outcome: confirmation.Failed, Reason: "timeout", At: time.Unix(1, 0).UTC()}
	msg, err := c.Message()
	require.NoError(t, err)
	back, err := confirmation.Parse(msg.Payload)
	require.NoError(t, err)
	require.Equal(t, c, back)

	again, err := c.Message()
	require.NoError(t, err)
	require.Equal(t, msg.UUID, again.UUID, "a copy is a duplicate")
	c.Outcome = confirmation.Done
	done, err := c.Message()
	require.NoError(t, err)
	require.NotEqual(t, msg.UUID, done.UUID)
}

func TestWhatIsNoConfirmationIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		``, `null`, `[]`, `{}`, `{"id":"m","group":"g","outcome":"perhaps"}`, `{"id":"","group":"g","outcome":"done"}`,
		`{"id":"m","group":"","outcome":"done"}`, `{"id":7,"group":"g","outcome":"done"}`, `{"id":"a\u0000b","group":"g","outcome":"done"}`,
		`{"id":"` + strings.Repeat("x", 65) + `","group":"g","outcome":"done"}`,
		`{"id":"m","group":"g","outcome":"done","reason":"` + strings.Repeat("x", 5000) + `"}`,
	} {
		_, err := confirmation.Parse([]byte(text))
		require.Error(t, err, text)
	}
	_, err := confirmation.Confirmation{}.Message()
	require.Error(t, err)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"id":"m","group":"g","outcome":"done","at":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"id":"m","group":"g","outcome":"failed","reason":"r"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := confirmation.Parse(payload)
		if err != nil {
			return
		}
		msg, err := c.Message()
		require.NoError(t, err)
		back, err := confirmation.Parse(msg.Payload)
		require.NoError(t, err)
		require.True(t, c.At.Equal(back.At))
		c.At, back.At = time.Time{}, time.Time{}
		require.Equal(t, c, back)
	})
}

// Consumers in other languages, and those of an earlier version, write this by hand.
func TestTheFormOnTheWireStaysAsItIs(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, c := range map[string]confirmation.Confirmation{
		`{"id":"m","group":"g","outcome":"done","sending":2,"at":"2026-01-02T03:04:05Z"}`: {
			ID: "m", Group: "g", Outcome: confirmation.Done, Sending: 2, At: at},
		`{"id":"m","group":"g","outcome":"failed","reason":"r","sending":1,"at":"2026-01-02T03:04:05Z"}`: {
			ID: "m", Group: "g", Outcome: confirmation.Failed, Reason: "r", Sending: 1, At: at},
		`{"id":"m","group":"g","outcome":"failed","at":"2026-01-02T03:04:05Z"}`: {
			ID: "m", Group: "g", Outcome: confirmation.Failed, At: at},
	} {
		msg, err := c.Message()
		require.NoError(t, err)
		require.Equal(t, text, string(msg.Payload))
		back, err := confirmation.Parse([]byte(text))
		require.NoError(t, err)
		require.Equal(t, c, back)
	}
	for _, text := range []string{`-1`, `1.5`, `"1"`, `2147483647`, `9999999999999`} {
		_, err := confirmation.Parse([]byte(`{"id":"m","group":"g","outcome":"done","sending":` + text + `}`))
		require.Error(t, err, text)
	}
}

func TestFailuresOfDifferentSendingsAreNoCopies(t *testing.T) {
	t.Parallel()
	id := func(outcome confirmation.Outcome, sending int) string {
		msg, err := confirmation.Confirmation{ID: "m", Group: "g", Outcome: outcome, Sending: sending}.Message()
		require.NoError(t, err)
		return msg.UUID
	}
	require.Equal(t, id(confirmation.Done, 1), id(confirmation.Done, 2))
	require.NotEqual(t, id(confirmation.Failed, 1), id(confirmation.Failed, 2))
	require.NotEqual(t, id(confirmation.Done, 1), id(confirmation.Failed, 1))
	require.NotEqual(t, id(confirmation.Done, 0), id(confirmation.Failed, 0))
}

func TestTheWordThatCounts(t *testing.T) {
	t.Parallel()
	word := func(outcome confirmation.Outcome, sending int) confirmation.Word {
		return confirmation.Confirmation{Group: "g", Outcome: outcome, Sending: sending}.Word()
	}
	done, failed := confirmation.Done, confirmation.Failed
	require.True(t, word(done, 1).Replaces(word(failed, 2)), "the effect is there")
	require.False(t, word(failed, 2).Replaces(word(done, 1)))
	require.True(t, word(failed, 2).Replaces(word(failed, 1)))
	require.False(t, word(failed, 1).Replaces(word(failed, 2)))
	require.True(t, word(failed, 0).Replaces(word(failed, 7)), "one that does not say which answers the latest")
	require.False(t, word(failed, 7).Replaces(word(failed, 0)))

	second := confirmation.Awaited{Groups: []string{"g"}, Sendings: confirmation.Sendings{}.Again(1, true)}
	for sending, over := range map[int]bool{0: true, 1: false, 2: true, 3: true} {
		verdict, _ := second.Judge([]confirmation.Word{word(failed, sending)})
		require.Equal(t, over, verdict == failed, "sending %d", sending)
		verdict, _ = second.Judge([]confirmation.Word{word(done, sending)})
		require.Equal(t, done, verdict)
	}
}

// A message that was sent by an earlier version has been numbered by its attempts.
func TestNumbersOfSendingsGoOnlyUp(t *testing.T) {
	t.Parallel()
	old := confirmation.Sendings{Sends: 3, FirstSent: 5}
	require.Equal(t, 5, old.Again(9, false).Latest())
	require.Equal(t, 5, old.Anew().Latest())
	require.Equal(t, confirmation.Sendings{Sending: 4}, old.Anew())
	require.Equal(t, 6, old.Again(9, true).Again(10, true).Latest())
}
