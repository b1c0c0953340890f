package millrace_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/millrace-go/millrace"

// Libraries, by the prefix of their import paths.
const (
	libPgx         = "github.com/jackc/pgx"
	libPq          = "github.com/lib/pq"
	libMySQL       = "github.com/go-sql-driver/mysql"
	libSQLite      = "modernc.org/sqlite"
	libRedis       = "github.com/redis/go-redis"
	libAMQP        = "github.com/rabbitmq/amqp091-go"
	libWMSQL       = "github.com/ThreeDotsLabs/watermill-sql"
	libWMAMQP      = "github.com/ThreeDotsLabs/watermill-amqp"
	libWMRedis     = "github.com/ThreeDotsLabs/watermill-redisstream"
	libTestify     = "github.com/stretchr/testify"
	libGoleak      = "go.uber.org/goleak"
	libPackageTest = "testing"
)

type goPackage struct {
	ImportPath string
	Imports    []string // direct, without tests
	Deps       []string // everything linked, without tests
	GoFiles    []string
}

// TestPackagesKeepTheImportTable holds the table of docs/architecture.md: who may link whom.
func TestPackagesKeepTheImportTable(t *testing.T) {
	t.Parallel()
	pkgs := listPackages(t)

	links := func(p goPackage, prefix string) bool {
		return slices.ContainsFunc(p.Deps, func(d string) bool { return under(d, prefix) })
	}
	imports := func(p goPackage, prefix string) bool {
		return slices.ContainsFunc(p.Imports, func(d string) bool { return under(d, prefix) })
	}
	harness := func(name string) bool { return under(name, "internal/testenv") || under(name, "internal/fault/proxy") }
	suite := func(name string) bool { return strings.HasSuffix(path.Base(name), "test") }

	for _, p := range pkgs {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		never := func(ok func(goPackage, string) bool, verb, why string, prefixes ...string) {
			for _, prefix := range prefixes {
				if ok(p, prefix) {
					t.Errorf("package %q %s %s: %s", name, verb, prefix, why)
				}
			}
		}

		if name == "" || under(name, "middleware") || under(name, "broker") {
			never(links, "links", "only who stores messages pays for the outbox", module+"/outbox", libWMSQL)
		}
		if name == "" {
			never(links, "links", "the root serves every driver and broker and names none",
				module+"/broker", libRedis, libPgx, libAMQP, libMySQL, libSQLite, libPq)
		}
		if name == "dedup" || name == "middleware" || name == "store" || name == "delayed" {
			never(links, "links", "the consumer side is independent of broker and store",
				libRedis, libAMQP, module+"/broker", libPgx)
		}
		if under(name, "forwarder") {
			never(links, "links", "the broker stands between forwarder and middleware", module+"/middleware", module+"/broker")
		}
		if under(name, "middleware") {
			never(links, "links", "the broker stands between forwarder and middleware", module+"/forwarder")
		}
		if name == "store/sqlstore" {
			never(links, "links", "a SQL store is for those without Redis", libRedis, libAMQP, module+"/broker")
		}
		if name == "store/redisstore" {
			never(links, "links", "a Redis store is for those without SQL drivers", libPgx, libAMQP, module+"/broker", module+"/outbox")
		}
		if name != "broker/rabbitmq" {
			never(imports, "imports", "broker/rabbitmq is the only one", libWMAMQP)
		}
		if name != "broker/redisstreams" {
			never(imports, "imports", "broker/redisstreams is the only one", libWMRedis)
		}
		if name != "outbox" {
			never(imports, "imports", "outbox is the only one", libWMSQL)
		}
		if !harness(name) {
			never(imports, "imports", "drivers are the user's choice", libPq, libMySQL, libSQLite)
			never(imports, "imports", "suites and production code use the standard library", libTestify, libGoleak)
		}
		if !harness(name) && name != "pgxtx" {
			never(imports, "imports", "pgxtx is the only one that names pgx", libPgx)
		}
		if !harness(name) && !suite(name) {
			never(links, "links", "production code carries no test code", libPackageTest)
		}
		for _, folder := range strings.Split(name, "/") {
			if slices.Contains([]string{"util", "utils", "common", "pkg", "base", "shared", "helpers"}, folder) {
				t.Errorf("package %q: a folder is named for an idea, %q names none", name, folder)
			}
		}
	}
}

// under reports whether an import path is the named one or below it.
func under(importPath, prefix string) bool {
	return importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Imports,Deps,GoFiles", "./...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %s", exit.Stderr)
	}
	require.NoError(t, err)

	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		pkgs = append(pkgs, p)
	}
	require.NotEmpty(t, pkgs)
	return pkgs
}
