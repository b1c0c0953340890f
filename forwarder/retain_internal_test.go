package forwarder

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/outbox/outboxtest"
)

// keeping is a Source whose outbox keeps messages.
type keeping struct {
	memorySource
	began, ended chan time.Time
}

func (k keeping) RunRetention(ctx context.Context) error {
	k.began <- time.Now()
	<-ctx.Done()
	k.ended <- time.Now()
	return ctx.Err()
}

func TestRetentionBeginsWhenWhatWaitedHasHadItsStartAndEndsWithTheForwarder(t *testing.T) {
	t.Parallel()
	for _, life := range []time.Duration{time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			k := keeping{memorySource{outboxtest.NewMemory()}, make(chan time.Time, 1), make(chan time.Time, 1)}
			f, err := New(k, &broker{}, Config{})
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), life)
			defer cancel()
			begun := time.Now()
			require.NoError(t, f.Run(ctx))
			if life < retainAfter {
				require.Empty(t, k.began)
				return
			}
			require.Equal(t, retainAfter, (<-k.began).Sub(begun))
			require.Equal(t, life, (<-k.ended).Sub(begun))
		})
	}
}
