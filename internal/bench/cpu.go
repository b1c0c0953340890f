package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/testenv/servers"
)

// ticks is how many clock ticks /proc counts in a second: 100 on every Linux.
const ticks = 100

// serverCPU is the CPU that each started server has used so far, in seconds. A server whose process is
// not on this machine is left out.
func (f *fleet) serverCPU(ctx context.Context) map[string]float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	used := map[string]float64{}
	for k, pid := range f.pids {
		if pid > 0 {
			used[string(k)] = cpuOf(pid, k == servers.Postgres)
		}
	}
	return used
}

// findPID remembers the process of a server that has just been started, if it is on this machine.
// RabbitMQ's management tells it some seconds after the start only.
func (f *fleet) findPID(ctx context.Context, k servers.Kind, a servers.Address) {
	for range 100 {
		pid, program := serverPID(ctx, k, a)
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if pid > 0 && strings.Contains(string(comm), program) {
			f.pids[k] = pid
			return
		}
		if pid > 0 || k != servers.RabbitMQ || a.Admin == "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func since(before, after map[string]float64) map[string]float64 {
	used := map[string]float64{}
	for name, v := range after {
		if was, ok := before[name]; ok {
			used[name] = v - was
		}
	}
	return used
}

// serverPID asks a server for its process, and says what its program is called.
func serverPID(ctx context.Context, k servers.Kind, a servers.Address) (int, string) {
	pid := 0
	switch k {
	case servers.Postgres:
		conn, err := pgx.Connect(ctx, a.URL)
		if err != nil {
			return 0, ""
		}
		defer conn.Close(ctx)
		if conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid) != nil {
			return 0, ""
		}
		stat := statOf(pid)
		if len(stat) < 2 {
			return 0, ""
		}
		pid, _ = strconv.Atoi(stat[1]) // the parent of all
		return pid, "postgres"
	case servers.Redis:
		opts, err := redis.ParseURL(a.URL)
		if err != nil {
			return 0, ""
		}
		client := redis.NewClient(opts)
		defer client.Close()
		info, _ := client.Info(ctx, "server").Result()
		for line := range strings.Lines(info) {
			if v, ok := strings.CutPrefix(line, "process_id:"); ok {
				pid, _ = strconv.Atoi(strings.TrimSpace(v))
			}
		}
		return pid, "redis"
	case servers.RabbitMQ:
		return rabbitPID(ctx, a.Admin), "beam"
	case servers.MariaDB:
		return mariaPID(ctx, a.URL), "maria"
	}
	return 0, ""
}

func rabbitPID(ctx context.Context, admin string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/api/nodes", nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	var nodes []struct {
		PID string `json:"os_pid"`
	}
	if json.NewDecoder(resp.Body).Decode(&nodes) != nil || len(nodes) == 0 {
		return 0
	}
	pid, _ := strconv.Atoi(nodes[0].PID)
	return pid
}

func mariaPID(ctx context.Context, dsn string) int {
	if _, err := mysql.ParseDSN(dsn); err != nil {
		return 0
	}
	db, err := servers.OpenMySQL(dsn)
	if err != nil {
		return 0
	}
	defer db.Close()
	var file string
	if db.QueryRowContext(ctx, "SELECT @@pid_file").Scan(&file) != nil {
		return 0
	}
	content, _ := os.ReadFile(file)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	return pid
}

// cpuOf is the CPU of a process in seconds; of a family, with its children, those that ended included.
func cpuOf(pid int, family bool) float64 {
	sum := 0.0
	add := func(pid int, fields ...int) {
		stat := statOf(pid)
		for _, i := range fields {
			if i < len(stat) {
				n, _ := strconv.ParseFloat(stat[i], 64)
				sum += n / ticks
			}
		}
	}
	if !family {
		add(pid, 11, 12)
		return sum
	}
	add(pid, 11, 12, 13, 14)
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range all {
		child, _ := strconv.Atoi(filepath.Base(path))
		if stat := statOf(child); len(stat) > 1 && stat[1] == strconv.Itoa(pid) {
			add(child, 11, 12)
		}
	}
	return sum
}

// statOf is /proc/pid/stat behind the name of the program: 0 state, 1 parent, 11 and 12 the process's
// own ticks, 13 and 14 those of children that ended.
func statOf(pid int) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.Fields(rest)
}
