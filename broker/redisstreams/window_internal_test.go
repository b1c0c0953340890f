package redisstreams

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// A random walk: whatever happens, at most limit entries are with handlers, at most one of a key, each
// key in order, and everything ends.
func TestTheWindowHandsOutEachKeyInOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWindow(1 + r.IntN(6))
		var handed, waiting []*delivery
		read, ended := 0, 0
		last := map[string]int{}
		for ended < 100 {
			for range r.IntN(max(1, w.room()) + 1) {
				if w.room() <= 0 || read == 100 {
					break
				}
				w.add(&delivery{id: fmt.Sprint(read), nacks: read, key: []string{"", "a", "b", "c"}[r.IntN(4)]})
				read++
			}
			if w.next() != nil && r.IntN(2) == 0 {
				handed = append(handed, w.hand())
			}
			require.LessOrEqual(t, w.handed, w.limit)
			require.LessOrEqual(t, len(w.all), ahead*w.limit)
			busy := map[string]bool{}
			for _, d := range append(handed, waiting...) {
				require.False(t, d.key != "" && busy[d.key], "two of key %s at once", d.key)
				busy[d.key] = true
			}
			if len(waiting) > 0 && r.IntN(3) == 0 {
				w.again(waiting[0])
				waiting = waiting[1:]
			}
			if len(handed) == 0 || r.IntN(2) == 0 {
				continue
			}
			i := r.IntN(len(handed))
			d := handed[i]
			handed = append(handed[:i:i], handed[i+1:]...)
			if r.IntN(3) == 0 { // nacked
				w.back(d)
				waiting = append(waiting, d)
				continue
			}
			w.remove(d)
			ended++
			if d.key != "" {
				require.GreaterOrEqual(t, d.nacks, last[d.key], "nacks numbers the entries here")
				last[d.key] = d.nacks
			}
		}
		require.Empty(t, w.all)
		require.Empty(t, w.lanes)
		require.Zero(t, w.handed)
	}
}

// An entry whose member lost it goes, wherever it stands in its key's lane.
func TestTheWindowForgetsAnEntryInAnyPlace(t *testing.T) {
	t.Parallel()
	for place := range 3 {
		w := newWindow(2)
		var all []*delivery
		for i := range 3 {
			all = append(all, &delivery{id: fmt.Sprint(i), key: "k"})
			w.add(all[i])
		}
		w.remove(all[place])
		for i := range 3 {
			if i == place {
				continue
			}
			require.Same(t, all[i], w.next())
			w.remove(w.hand())
		}
		require.Nil(t, w.next())
	}
}

func TestIDsOfEntriesAreCompared(t *testing.T) {
	t.Parallel()
	require.True(t, less("9-5", "10-0"))
	require.True(t, less("10-5", "10-10"))
	require.False(t, less("10-5", "10-5"))
	require.False(t, less("10-5", "0"))
	require.Equal(t, "10-4", before("10-5"))
	require.Equal(t, "9-18446744073709551615", before("10-0"))
	require.Equal(t, "0-0", before("0-0"))
	require.Equal(t, "0-0", before("0"))
}

// Whatever stands in an entry, it becomes a message with an id.
func FuzzDecode(f *testing.F) {
	f.Add("_watermill_message_uuid", "id", "metadata", "\x81\xa1k\xa1v")
	f.Add("payload", "x", "metadata", "\xc1")
	f.Add("_watermill_message_uuid", "", "", "\xff")
	cfg, _ := Config{URL: "redis://localhost"}.withDefaults()
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		msg := decode(cfg.Marshaler, "topic", "1-0", map[string]any{a: b, c: d})
		require.NotEmpty(t, msg.UUID)
		require.NotNil(t, msg.Metadata)
		msg.Metadata.Set("can be", "written")
	})
}
