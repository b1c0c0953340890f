package redisdedup

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"

	"github.com/millrace-go/millrace/dedup"
)

// recordKey builds <namespace>:idem:v1:<consumer>:<hash of the message id>.
//
// Ids and consumer names come from outside: the id is hashed, the name escaped, so that neither can
// forge another key, choose a Cluster slot with braces, or make a key of any length. Read from the
// right, no two triples give one key.
func recordKey(namespace string, k dedup.Key) string {
	return namespace + ":idem:v1:" + escapeConsumer(k.Consumer) + ":" + hash22(k.MessageID)
}

const maxConsumer = 96

func escapeConsumer(name string) string {
	esc := url.QueryEscape(name)
	if len(esc) <= maxConsumer {
		return esc
	}
	// '!' is never left by QueryEscape, so a shortened name is no other name written out.
	return esc[:maxConsumer-23] + "!" + hash22(name)
}

// hash22 is 132 bits of SHA-256 in 22 characters.
func hash22(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:])[:22]
}
