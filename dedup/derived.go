package dedup

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/google/uuid"
)

// derivedPrefix opens every derived id ("mill" in ASCII), so that a consumer can tell one.
const derivedPrefix = "6d696c6c-"

// DerivedID names the index-th message that a consumer produced from a message: the same on every run,
// so that those who receive it can drop what a second run produced. It is a UUID of version 8.
func DerivedID(from Key, index int) string {
	h := sha256.New()
	for _, part := range []string{from.Consumer, from.MessageID} {
		// With its length, so that no two pairs read alike.
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(index)))

	var id uuid.UUID
	copy(id[:], h.Sum(nil))
	copy(id[:4], "mill")
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// IsDerived reports whether id was made by DerivedID. Two messages with the same derived id are two
// runs of one handler: duplicates, even where their content differs.
func IsDerived(id string) bool {
	return len(id) == 36 && strings.HasPrefix(id, derivedPrefix) && id[14] == '8'
}
