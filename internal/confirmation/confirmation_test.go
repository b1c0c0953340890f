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
