package redisserver_test

import (
	"context"
	"io"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/redisserver"
	"github.com/millrace-go/millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func client(t *testing.T, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// settings asks for all that there is to ask for.
func settings(t *testing.T, rdb *redis.Client) (all map[string]string, err error) {
	t.Helper()
	all = map[string]string{}
	for _, name := range []string{"maxmemory-policy", "appendonly", "appendfsync"} {
		if all[name], err = redisserver.Setting(t.Context(), rdb, name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func TestAServerTellsItsSettingsByOneWayOrTheOther(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		refused []string // commands
		want    map[string]string
		version bool
	}{
		"all":            {want: map[string]string{"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}, version: true},
		"without CONFIG": {refused: []string{"config"}, want: map[string]string{"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": ""}, version: true},
		"nothing":        {refused: []string{"config", "info"}, want: map[string]string{"maxmemory-policy": "", "appendonly": "", "appendfsync": ""}},
	} {
		for _, kind := range []string{"NOPERM no permissions", "ERR unknown command"} {
			t.Run(name+": "+kind, func(t *testing.T) {
				t.Parallel()
				rdb := client(t, testenv.OwnRedis(t, "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction").URL)
				for _, command := range tc.refused {
					rdb.AddHook(failing{command, answer(kind)})
				}
				got, err := settings(t, rdb)
				require.NoError(t, err)
				require.Equal(t, tc.want, got)
				version, major, err := redisserver.Version(t.Context(), rdb)
				require.NoError(t, err)
				require.Equal(t, tc.version, version != "")
				require.Equal(t, tc.version, major >= 6)
			})
		}
	}
}

func TestAServerThatDoesNotAnswerHasToldNothing(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{io.ErrUnexpectedEOF, context.DeadlineExceeded, answer("LOADING Redis is loading the dataset in memory"),
		answer("CLUSTERDOWN The cluster is down"), answer("MASTERDOWN Link with MASTER is down"), answer("BUSY Redis is busy running a script")} {
		rdb := client(t, testenv.Redis(t))
		rdb.AddHook(failing{"config", cause})
		_, err := settings(t, rdb)
		require.ErrorIs(t, err, cause)
		rdb.AddHook(failing{"info", cause})
		_, _, err = redisserver.Version(t.Context(), rdb)
		require.ErrorIs(t, err, cause)
	}
}

// answer is an error that a server answers.
type answer string

func (a answer) Error() string { return string(a) }
func (answer) RedisError()     {}

// failing has a command fail.
type failing struct {
	command string
	err     error
}

func (f failing) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f failing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == f.command {
			cmd.SetErr(f.err)
			return f.err
		}
		return next(ctx, cmd)
	}
}

func (f failing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
