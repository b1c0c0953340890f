package confirmation_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/confirmation"
)

func TestASignatureCoversEverythingThatTheProducerActsOn(t *testing.T) {
	t.Parallel()
	key, other := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("o", 32))
	c := confirmation.Confirmation{ID: "m", Group: "g", Outcome: confirmation.Failed, Reason: "r", Sending: 2}.Sign(key)
	msg, err := c.Message()
	require.NoError(t, err)
	back, err := confirmation.Parse(msg.Payload)
	require.NoError(t, err)
	require.True(t, back.SignedBy(key))
	require.True(t, back.SignedBy(other, key), "while keys are changed, both count")
	require.False(t, back.SignedBy(other))
	require.False(t, back.SignedBy())
	for name, forge := range map[string]func(c *confirmation.Confirmation){
		"id":        func(c *confirmation.Confirmation) { c.ID = "n" },
		"group":     func(c *confirmation.Confirmation) { c.Group = "h" },
		"outcome":   func(c *confirmation.Confirmation) { c.Outcome = confirmation.Done },
		"reason":    func(c *confirmation.Confirmation) { c.Reason = "" },
		"sending":   func(c *confirmation.Confirmation) { c.Sending = 3 },
		"fields":    func(c *confirmation.Confirmation) { c.ID, c.Group = "mg", "" },
		"none":      func(c *confirmation.Confirmation) { c.Signature = "" },
		"not hex":   func(c *confirmation.Confirmation) { c.Signature = "zz" },
		"truncated": func(c *confirmation.Confirmation) { c.Signature = c.Signature[:62] },
	} {
		forged := back
		forge(&forged)
		require.False(t, forged.SignedBy(key), name)
	}
	// So that those who sign in another language can compare.
	require.Equal(t, "990df564c2d68a7eaf8f21cf4d9df8cede3f098f72e79ba50666a8803be68444", c.Signature)
}
