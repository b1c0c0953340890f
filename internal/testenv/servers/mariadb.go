package servers

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

var (
	mariadbdBinary  = binary{names: []string{"mariadbd"}, folders: []string{"/usr/sbin", "/usr/libexec"}}
	mariadbInstall  = binary{names: []string{"mariadb-install-db"}, folders: []string{"/usr/bin"}}
	mariadbDatabase = "mysql" // one that exists
)

var mariadb = product{
	kind:     MariaDB,
	binaries: []binary{mariadbdBinary, mariadbInstall},
	users:    []string{"mysql"},
	install:  "apt-get install mariadb-server",
	quit:     syscall.SIGKILL,
	stop:     syscall.SIGTERM,
	create:   createMariaDB,
	command:  mariadbCommand,
	address: func(n *node) Address {
		c := mysql.NewConfig()
		c.User, c.Passwd = account, n.password
		c.Net, c.Addr = "tcp", port.Address(n.port)
		c.DBName, c.ParseTime = mariadbDatabase, true
		return Address{URL: c.FormatDSN()}
	},
	ping: func(ctx context.Context, _ *node, a Address) error {
		db, err := OpenMySQL(a.URL)
		if err != nil {
			return err
		}
		defer db.Close()
		return db.PingContext(ctx)
	},
}

func createMariaDB(ctx context.Context, n *node) error {
	// The file is run at each start, before anybody is let in.
	statements := fmt.Sprintf("CREATE USER IF NOT EXISTS '%[1]s'@'%%' IDENTIFIED BY '%[2]s';\n"+
		"GRANT ALL PRIVILEGES ON *.* TO '%[1]s'@'%%' WITH GRANT OPTION;\n", account, n.password)
	if err := n.write("init.sql", statements); err != nil {
		return err
	}
	return n.prepare(ctx, mariadbInstall.path(), "--no-defaults", "--datadir="+n.path("data"),
		"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-log-bin")
}

func mariadbCommand(n *node) []process {
	argv := []string{
		mariadbdBinary.path(), "--no-defaults",
		"--datadir=" + n.path("data"),
		"--port=" + strconv.Itoa(n.port),
		"--bind-address=127.0.0.1",
		"--socket=" + n.path("socket"),
		"--pid-file=" + n.path("pid"),
		"--init-file=" + n.path("init.sql"),
		"--skip-name-resolve", "--skip-log-bin",
		"--max-connections=400",
		"--innodb-buffer-pool-size=64M",
		"--character-set-server=utf8mb4",
	}
	if !n.opts.Durable {
		// innodb_flush_log_at_trx_commit stays 1, because code under test looks at it.
		argv = append(argv, "--innodb-flush-method=nosync")
	}
	return []process{{argv: append(argv, n.opts.Args...)}}
}

// MySQLDatabase is the DSN with another database, and times parsed.
func MySQLDatabase(dsn, name string) (string, error) {
	c, err := parseMySQL(dsn)
	if err != nil {
		return "", err
	}
	c.DBName, c.ParseTime = name, true
	return c.FormatDSN(), nil
}

// OpenMySQL opens a DSN. The driver's own words about broken connections, which a server that is
// started makes many of, go nowhere.
func OpenMySQL(dsn string) (*sql.DB, error) {
	c, err := parseMySQL(dsn)
	if err != nil {
		return nil, err
	}
	c.Logger = silent{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", MariaDB.Variable(), err)
	}
	return sql.OpenDB(connector), nil
}

func parseMySQL(dsn string) (*mysql.Config, error) {
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		if strings.HasPrefix(dsn, "mysql://") {
			return nil, fmt.Errorf("%s is a URL, want user:password@tcp(host:port)/database", MariaDB.Variable())
		}
		return nil, fmt.Errorf("%s: %w", MariaDB.Variable(), err)
	}
	return c, nil
}

type silent struct{}

func (silent) Print(...any) {}
