package outboxtest_test

import (
	"testing"

	"github.com/millrace-go/millrace/outbox/outboxtest"
)

func TestMemoryKeepsTheRules(t *testing.T) {
	t.Parallel()
	outboxtest.Run(t, func(*testing.T) outboxtest.Harness { return outboxtest.NewMemory().Harness() })
}
