package testenv_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/internal/testenv/servers"
)

func TestMain(m *testing.M) {
	testenv.Main(m,
		testenv.Role("server", startServers),
		testenv.Role("fault", func() { fault.Point("there"); fmt.Println("survived") }),
		testenv.Role("fault twice", func() { fault.Point("there"); fmt.Println("survived"); fault.Point("there") }),
		testenv.Role("wait", func() { fmt.Println("waiting"); select {} }),
		testenv.Role("parent", func() {
			child := testenv.Child(noTest{}, "wait")
			child.Stdout = os.Stdout
			fmt.Fprint(os.Stderr, child.Run())
		}),
	)
}

func postgresRow(ctx context.Context, url, query string) (string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	var s string
	err = conn.QueryRow(ctx, query).Scan(&s)
	return s, err
}

func openMySQL(t *testing.T, dsn string) *sql.DB {
	db, err := sql.Open("mysql", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func openRedis(t *testing.T, url string) *redis.Client {
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	opts.MaxRetries, opts.DialerRetries = -1, 1
	client := redis.NewClient(opts)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func TestPostgresGivesEachTestADatabaseOfItsOwnAndDropsIt(t *testing.T) {
	var first string
	t.Run("one", func(t *testing.T) {
		first = testenv.Postgres(t)
		conn, err := pgx.Connect(t.Context(), first)
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "CREATE TABLE x (a int)")
		require.NoError(t, err)
		// The connection stays open: the database is dropped all the same.
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	})
	_, err := postgresRow(t.Context(), first, "SELECT 'there'")
	require.ErrorContains(t, err, "does not exist")

	n, err := postgresRow(t.Context(), testenv.Postgres(t), "SELECT count(*)::text FROM pg_tables WHERE schemaname = 'public'")
	require.NoError(t, err)
	require.Equal(t, "0", n)
}

func TestPostgresRefusesAWrongPassword(t *testing.T) {
	u, err := url.Parse(testenv.Postgres(t))
	require.NoError(t, err)
	u.User = url.UserPassword(u.User.Username(), "wrong")
	_, err = postgresRow(t.Context(), u.String(), "SELECT 'in'")
	require.ErrorContains(t, err, "password authentication failed")
}

func TestMariaDBGivesEachTestADatabaseOfItsOwnAndDropsIt(t *testing.T) {
	var first string
	t.Run("one", func(t *testing.T) {
		first = testenv.MariaDB(t)
		db := openMySQL(t, first)
		_, err := db.ExecContext(t.Context(), "CREATE TABLE x (a datetime(6))")
		require.NoError(t, err)
		_, err = db.ExecContext(t.Context(), "INSERT INTO x VALUES (now(6))")
		require.NoError(t, err)
		var at time.Time
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT a FROM x").Scan(&at))
	})
	var unknown *mysql.MySQLError
	require.ErrorAs(t, openMySQL(t, first).PingContext(t.Context()), &unknown)
	require.EqualValues(t, 1049, unknown.Number)
}

func TestRedisPrefixIsUniqueAndItsKeysAreRemoved(t *testing.T) {
	client := openRedis(t, testenv.Redis(t))
	var key string
	t.Run("one", func(t *testing.T) {
		prefix := testenv.RedisPrefix(t)
		require.NotEqual(t, prefix, testenv.RedisPrefix(t))
		key = prefix + "a"
		require.NoError(t, client.Set(t.Context(), key, "1", 0).Err())
		require.NoError(t, client.Set(t.Context(), "{"+key+"}", "1", 0).Err())
	})
	n, err := client.Exists(t.Context(), key, "{"+key+"}").Result()
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestRedisKeepsALogEvictsNothingAndAllowsDebug(t *testing.T) {
	client := openRedis(t, testenv.Redis(t))
	for name, want := range map[string]string{"appendonly": "yes", "maxmemory-policy": "noeviction"} {
		got, err := client.ConfigGet(t.Context(), name).Result()
		require.NoError(t, err)
		require.Equal(t, want, got[name])
	}
	require.NoError(t, client.Do(t.Context(), "DEBUG", "SLEEP", "0").Err())
}

func TestRabbitMQGivesEachTestAVirtualHostAndDeletesIt(t *testing.T) {
	var first string
	t.Run("one", func(t *testing.T) {
		first = testenv.RabbitMQ(t)
		conn, err := amqp.Dial(first)
		require.NoError(t, err)
		defer conn.Close()
		ch, err := conn.Channel()
		require.NoError(t, err)
		for kind, args := range map[string]amqp.Table{"classic": nil, "quorum": {"x-queue-type": "quorum"}} {
			_, err = ch.QueueDeclare(kind, true, false, false, false, args)
			require.NoError(t, err, kind)
			require.NoError(t, ch.Confirm(false))
			c, err := ch.PublishWithDeferredConfirm("", kind, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
			require.NoError(t, err)
			require.True(t, c.Wait(), kind)
		}
	})
	_, err := amqp.Dial(first)
	require.Error(t, err)
}

func TestSQLiteIsAFileInTheTestsOwnFolder(t *testing.T) {
	path := testenv.SQLite(t)
	require.NotEqual(t, path, testenv.SQLite(t))
	require.NoFileExists(t, path)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
}

func TestAChildArmedByTheEnvironmentDiesAtItsPoint(t *testing.T) {
	out, err := testenv.Child(t, "fault", fault.Env("there", 1, fault.Kill)).Output()
	require.ErrorContains(t, err, "signal: killed")
	require.Empty(t, out)

	out, err = testenv.Child(t, "fault").Output()
	require.NoError(t, err)
	require.Equal(t, "survived\n", string(out))
}

func TestAPointArmedInAWayThatCannotBeReadIsNotPassedInSilence(t *testing.T) {
	for _, value := range []string{"there", "there:1", "there:0:kill", "there:x:kill", "there:1:stop", ":1:kill"} {
		child := testenv.Child(t, "fault", fault.Variable+"="+value)
		var words strings.Builder
		child.Stderr = &words
		require.Error(t, child.Run(), value)
		require.Contains(t, words.String(), fault.Variable, value)
	}
}

func TestAChildArmedToPanicPanicsAtItsSecondHit(t *testing.T) {
	child := testenv.Child(t, "fault twice", fault.Variable+"=other:1:kill,there:2:panic")
	var words strings.Builder
	child.Stderr = &words
	out, err := child.Output()
	require.Error(t, err)
	require.Equal(t, "survived\n", string(out))
	require.Contains(t, words.String(), "panic: fault: there")
}

func TestAChildDiesWithItsParent(t *testing.T) {
	parent := testenv.Child(t, "parent")
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Equal(t, "waiting", lines.Text())
	require.NoError(t, parent.Process.Kill())
	// The child has the other end of the pipe: it ends when the child does.
	require.False(t, lines.Scan())
	require.Error(t, parent.Wait())
}

func TestAChildOfAnUnknownRoleSaysSo(t *testing.T) {
	child := testenv.Child(t, "nobody")
	var words strings.Builder
	child.Stderr = &words
	require.Error(t, child.Run())
	require.Contains(t, words.String(), "no such role")
}

// noTest stands in for the test in a process that is none.
type noTest struct{ testing.TB }

func (noTest) Helper()        {}
func (noTest) Cleanup(func()) {}

// startServers is the role of a process that is killed while its servers run.
func startServers() {
	var pool servers.Pool
	for _, k := range []servers.Kind{servers.Postgres, servers.Redis} {
		s, err := pool.Start(context.Background(), k, servers.Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if k == servers.Postgres && os.Getenv("PAUSED") != "" {
			if err := s.Pause(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		u, _ := url.Parse(s.URL)
		fmt.Println(u.Host)
	}
	select {}
}

func TestServersEndWhenTheProcessThatStartedThemIsKilled(t *testing.T) {
	for _, paused := range []string{"", "1"} {
		child := testenv.Child(t, "server", "PAUSED="+paused)
		out, err := child.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, child.Start())
		lines := bufio.NewScanner(out)
		var hosts []string
		for len(hosts) < 2 && lines.Scan() {
			hosts = append(hosts, lines.Text())
		}
		require.Len(t, hosts, 2)
		require.NoError(t, child.Process.Kill())
		require.Error(t, child.Wait())
		for _, host := range hosts {
			testenv.Eventually(t, time.Minute, "port of "+host+" to close", func() bool { return !listens(host) })
		}
	}
}
