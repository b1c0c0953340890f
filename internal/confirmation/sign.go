package confirmation

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// Sign returns c with a signature by a key that consumers and producer share: HMAC-SHA256, in hexadecimal, of what
// the producer acts on, each field after its length in bytes, "4:o-17" and so on, for id, group, outcome, reason and
// sending. The time is not covered; nothing depends on it.
func (c Confirmation) Sign(key []byte) Confirmation {
	c.Signature = hex.EncodeToString(c.mac(key))
	return c
}

// SignedBy reports whether one of the keys has signed it. It takes the same time whatever the signature is.
func (c Confirmation) SignedBy(keys ...[]byte) bool {
	given, err := hex.DecodeString(c.Signature)
	if err != nil {
		return false
	}
	signed := false
	for _, key := range keys {
		signed = hmac.Equal(given, c.mac(key)) || signed
	}
	return signed
}

func (c Confirmation) mac(key []byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, field := range []string{c.ID, c.Group, string(c.Outcome), c.Reason, strconv.Itoa(c.Sending)} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(field), field)
	}
	return h.Sum(nil)
}

// ErrUnsigned says that none of the keys has signed a confirmation.
var ErrUnsigned = errors.New("confirmation: nobody has signed it")

// ParseSigned is Parse where one of the keys must have signed, if there are any. With ErrUnsigned it returns what the
// confirmation claims.
func ParseSigned(payload []byte, keys [][]byte) (Confirmation, error) {
	c, err := Parse(payload)
	if err == nil && len(keys) > 0 && !c.SignedBy(keys...) {
		err = ErrUnsigned
	}
	return c, err
}

// MinKey is the least length of a key, in bytes.
const MinKey = 32
