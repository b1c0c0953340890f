package pattern_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/pattern"
)

func mustPattern(t *testing.T, text string) pattern.Pattern {
	t.Helper()
	p, err := pattern.Parse(text)
	require.NoError(t, err)
	return p
}

func TestPatternsMatchAsTheBindingsOfATopicExchangeDo(t *testing.T) {
	t.Parallel()
	for text, topics := range map[string]struct{ yes, no string }{
		"orders":            {"orders", "orders.placed Orders order"},
		"orders.*":          {"orders.placed orders.x", "orders orders.placed.v2 x.orders.y"},
		"orders.#":          {"orders orders.placed orders.placed.v2", "order orders2 x.orders"},
		"#":                 {"a a.b a.b.c x:y", ""},
		"*":                 {"a x:y", "a.b"},
		"#.placed":          {"placed orders.placed a.b.placed", "placed.orders"},
		"a.#.z":             {"a.z a.b.z a.b.c.z", "a z a.b a.zz"},
		"a.*.#.z":           {"a.b.z a.b.c.z", "a.z"},
		"#.a.#":             {"a x.a a.x x.a.y", "x x.y"},
		"Überweisung.*":     {"Überweisung.neu", "uberweisung.neu"},
		"a.#.#.#.#.#.b.#.c": {"a.b.c a.x.b.y.c", "a.c a.b"},
	} {
		p := mustPattern(t, text)
		for _, topic := range strings.Fields(topics.yes) {
			require.True(t, p.Matches(topic), "%s takes %s", text, topic)
		}
		for _, topic := range strings.Fields(topics.no) {
			require.False(t, p.Matches(topic), "%s does not take %s", text, topic)
		}
	}
}

func TestBadPatternsAreNamed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "empty", "a..b": "empty word", ".a": "empty word", "a*": "whole words", "a.b#.c": "whole words",
	} {
		_, err := pattern.Parse(text)
		require.ErrorContains(t, err, want, text)
	}
}

func TestAPatternCoversAnotherIfItTakesAllItsTopics(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		p, other string
		covers   bool
	}{
		{"#", "a.*.b", true}, {"a.#", "a", true}, {"a.#", "a.*", true}, {"a.*", "a.#", false}, {"#.*", "*.#", true},
		{"*.#", "#.*", true}, {"*.#", "#", false}, {"a.*", "a.b", true}, {"a.b", "a.*", false}, {"#.a.#", "x.a", true}, {"#.a.#", "x.*", false},
	} {
		require.Equal(t, c.covers, mustPattern(t, c.p).Covers(mustPattern(t, c.other)), "%s and %s", c.p, c.other)
	}
	// What is said to be covered has no topic of its own.
	words := []string{"a", "b", "*", "#"}
	random := func(n int, from []string) string {
		var parts []string
		for range 1 + rand.N(n) {
			parts = append(parts, from[rand.N(len(from))])
		}
		return strings.Join(parts, ".")
	}
	covered := 0
	for range 3000 {
		p, other := mustPattern(t, random(4, words)), mustPattern(t, random(4, words))
		if !p.Covers(other) {
			continue
		}
		covered++
		for range 20 {
			topic := random(5, words[:2])
			if other.Matches(topic) {
				require.True(t, p.Matches(topic), fmt.Sprint(p, other, topic))
			}
		}
	}
	require.NotZero(t, covered)
}
