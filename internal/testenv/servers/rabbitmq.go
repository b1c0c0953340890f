package servers

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"syscall"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/internal/testenv/port"
)

var (
	// The program in the search path is a wrapper that goes through su and writes to /var.
	rabbitBinary = binary{names: []string{"rabbitmq-server"}, hidden: true, folders: []string{
		"/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin", "/opt/rabbitmq/sbin",
	}}
	epmdBinary = binary{names: []string{"epmd"}, folders: []string{"/usr/lib/erlang/bin", "/usr/lib/erlang/erts-*/bin"}}
)

var rabbitmq = product{
	kind:     RabbitMQ,
	binaries: []binary{rabbitBinary, epmdBinary},
	users:    []string{"rabbitmq"},
	install:  "apt-get install rabbitmq-server",
	quit:     syscall.SIGKILL,
	stop:     syscall.SIGTERM,
	create:   createRabbitMQ,
	command:  rabbitCommand,
	address: func(n *node) Address {
		user := url.UserPassword(account, n.password)
		broker := url.URL{Scheme: "amqp", User: user, Host: port.Address(n.port), Path: "/"}
		admin := url.URL{Scheme: "http", User: user, Host: port.Address(n.admin)}
		return Address{URL: broker.String(), Admin: admin.String()}
	},
	ping: func(ctx context.Context, _ *node, a Address) error {
		conn, err := amqp.DialConfig(a.URL, amqp.Config{Dial: dialer(ctx)})
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
		return NewAdmin(a.Admin).Ping(ctx)
	},
}

func createRabbitMQ(_ context.Context, n *node) error {
	memory := "absolute = 1GB" // there may be several
	if n.opts.Durable {
		memory = "relative = 0.4" // as it comes: a long queue is not to stop who publishes
	}
	config := fmt.Sprintf(`listeners.tcp.default = 127.0.0.1:%d
management.tcp.ip = 127.0.0.1
management.tcp.port = %d
management.rates_mode = none
default_user = %s
default_pass = %s
default_vhost = /
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 10MB
vm_memory_high_watermark.%s
`, n.port, n.admin, account, n.password, memory)
	if err := n.write("rabbitmq.conf", config); err != nil {
		return err
	}
	if err := n.write("enabled_plugins", "[rabbitmq_management].\n"); err != nil {
		return err
	}
	return n.write("rabbitmq-env.conf", "") // instead of the machine's
}

// rabbitCommand also starts the port mapper. Erlang would do that itself, as a daemon that stays
// when the broker ends.
func rabbitCommand(n *node) []process {
	env := []string{
		"ERL_EPMD_PORT=" + strconv.Itoa(n.epmd),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=millrace" + strconv.Itoa(n.port) + "@localhost",
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(n.dist),
		"RABBITMQ_CONF_ENV_FILE=" + n.path("rabbitmq-env.conf"),
		"RABBITMQ_CONFIG_FILE=" + n.path("rabbitmq.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + n.path("enabled_plugins"),
		"RABBITMQ_MNESIA_BASE=" + n.path("data"),
		"RABBITMQ_LOG_BASE=" + n.path("log"),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + n.path("pid"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + n.path("config"),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false +S 2:2",
	}
	return []process{
		{argv: append([]string{rabbitBinary.path()}, n.opts.Args...), env: env},
		{argv: []string{epmdBinary.path(), "-port", strconv.Itoa(n.epmd), "-address", "127.0.0.1"}},
	}
}

// RabbitMQVhost is the URL with another virtual host.
func RabbitMQVhost(address, name string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("%s is not a URL", RabbitMQ.Variable()) // its text may hold the password
	}
	u.Path = "/" + name
	return u.String(), nil
}
