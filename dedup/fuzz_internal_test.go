package dedup

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// FuzzStoredID: whatever the ids, each fits its column, and two of them are never one.
func FuzzStoredID(f *testing.F) {
	f.Add("m", "M")
	f.Add("", " ")
	f.Add("\x00", "\xff")
	f.Add(strings.Repeat("x", 200), strings.Repeat("x", 201))
	f.Add(strings.Repeat("é", 100), strings.Repeat("é", 101))
	f.Add("sha256:x", storedID("sha256:x"))
	f.Add(strings.Repeat("y", 300), storedID(strings.Repeat("y", 300)))
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := storedID(a), storedID(b)
		require.LessOrEqual(t, len(x), maxName)
		require.True(t, utf8.ValidString(x))
		require.NotContains(t, x, "\x00")
		require.Equal(t, a == b, x == y, "%q and %q are kept as %q and %q", a, b, x, y)
	})
}

// FuzzDerivedID: of one message and index there is one id, of others there are others.
func FuzzDerivedID(f *testing.F) {
	f.Add("a", "bc", 0, "ab", "c", 0)
	f.Add("", "", 0, "", "", 1)
	f.Add("a", "b", 1<<40, "a", "b", -1)
	f.Fuzz(func(t *testing.T, c1, m1 string, i1 int, c2, m2 string, i2 int) {
		x, y := DerivedID(Key{c1, m1}, i1), DerivedID(Key{c2, m2}, i2)
		require.True(t, IsDerived(x))
		require.Equal(t, c1 == c2 && m1 == m2 && i1 == i2, x == y)
		require.Equal(t, x, storedID(x), "it is kept as it is")
	})
}
