package redisdedup

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
)

func TestKeysHaveTheDocumentedForm(t *testing.T) {
	t.Parallel()
	require.Equal(t, "shop:idem:v1:billing:YsZqel3XDDFGYYBjw0TlMe", recordKey("shop", dedup.Key{Consumer: "billing", MessageID: "m"}))
	require.Equal(t, "shop:idem:v1:a%3Ab:YsZqel3XDDFGYYBjw0TlMe", recordKey("shop", dedup.Key{Consumer: "a:b", MessageID: "m"}))
}

// FuzzRecordKey: whatever the names, a key is of bounded length, has no hash tag, and names one record.
func FuzzRecordKey(f *testing.F) {
	f.Add("ns", "a", "m", "ns:idem:v1:a", "b", "m")
	f.Add("ns", "a:b", "m", "ns", "a", "b:m")
	f.Add("n", "{x}", "{y}", "n", "%7Bx%7D", "{y}")
	f.Add("n", strings.Repeat("é", 200), "", "n", strings.Repeat("é", 201), "")
	f.Add("n", strings.Repeat("x", 73)+"!YsZqel3XDDFGYYBjw0TlMe", "m", "n", strings.Repeat("x", 97), "m")
	f.Fuzz(func(t *testing.T, ns1, c1, m1, ns2, c2, m2 string) {
		k1 := recordKey(ns1, dedup.Key{Consumer: c1, MessageID: m1})
		k2 := recordKey(ns2, dedup.Key{Consumer: c2, MessageID: m2})
		if len(k1) > len(ns1)+9+maxConsumer+1+22 {
			t.Errorf("key of %d bytes", len(k1))
		}
		if strings.ContainsAny(strings.TrimPrefix(k1, ns1), "{}\r\n \x00") {
			t.Errorf("key %q", k1)
		}
		if same := ns1 == ns2 && c1 == c2 && m1 == m2; (k1 == k2) != same {
			t.Errorf("%q %q %q and %q %q %q: keys %q and %q", ns1, c1, m1, ns2, c2, m2, k1, k2)
		}
	})
}
