package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWhatEachStyleLosesInventsAndDoubles(t *testing.T) {
	results, err := compare(t.Context(), 50)
	require.NoError(t, err)
	want := []result{
		{style: "send inside the transaction", committed: 30, refused: 10, ghosts: 15},
		{style: "send after COMMIT, by a hook", committed: 40, lost: 10},
		{style: "outbox and forwarder", committed: 40, doubled: 5},
		{style: "half message, other database", committed: 40, doubled: 5},
	}
	require.Equal(t, want, results)

	var page strings.Builder
	report(&page, 50, results)
	require.Contains(t, page.String(), "send after COMMIT, by a hook             40           0     10       0        0\n")
}
