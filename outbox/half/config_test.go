package half_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/half"
)

func TestNewReportsEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := half.New(nil, nil, half.Config{
		FirstCheck: -1, MaxChecks: -1, MaxAge: time.Hour, Retention: time.Hour,
		Witnesses: map[string]millrace.DB{"": nil},
		Checkers:  map[string]half.Checker{"orders": nil},
		Callback:  &half.Callback{Allow: []string{"ftp://x", "http://a:b@c"}},
	})
	for _, want := range []string{"FirstCheck", "MaxChecks", "Retention", "Witnesses", "Checkers", "http or https", "credentials", "outbox"} {
		require.ErrorContains(t, err, want)
	}
}

func TestCheckNamesTheMissingMigration(t *testing.T) {
	t.Parallel()
	s := &scene{T: t}
	_, db := s.open("sqlite", sqlite.source(t))
	box, err := outbox.New(db, outbox.Config{})
	require.NoError(t, err)
	m, err := half.New(db, box, half.Config{Witnesses: map[string]millrace.DB{"orders": db}})
	require.NoError(t, err)
	require.ErrorContains(t, m.Check(t.Context()), "half.Migrations()")
	require.NoError(t, millrace.Migrate(t.Context(), db, half.Migrations()))
	err = m.Check(t.Context())
	require.ErrorContains(t, err, "half.BarrierMigrations()")
	require.True(t, half.IsSetup(err))
	require.ErrorIs(t, m.Run(t.Context()), half.ErrNoTable, "Run says so at once")
}
