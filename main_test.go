package millrace_test

import (
	"os"
	"testing"

	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv("MILLRACE_TEST_WRITER"); dsn != "" {
		otherWriter(dsn)
		return
	}
	testenv.Main(m)
}
