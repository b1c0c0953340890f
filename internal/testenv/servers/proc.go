package servers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entry is a line of the system's list of processes.
type entry struct {
	pid, parent int
	zombie      bool
}

// descendants are the processes below pid, at any depth. A server's process group is not enough:
// each of PostgreSQL's processes makes itself the leader of a group of its own.
func descendants(pid int) ([]int, error) {
	list, err := list()
	if err != nil {
		return nil, err
	}
	children := make(map[int][]int)
	for _, e := range list {
		children[e.parent] = append(children[e.parent], e.pid)
	}
	var all []int
	for next := children[pid]; len(next) > 0; next = next[1:] {
		all = append(all, next[0])
		next = append(next, children[next[0]]...)
	}
	return all, nil
}

// gone waits until the processes have ended.
func gone(pids []int) error {
	deadline := time.Now().Add(time.Minute)
	for {
		list, err := list()
		if err != nil {
			return err
		}
		left := slices.ContainsFunc(list, func(e entry) bool { return !e.zombie && slices.Contains(pids, e.pid) })
		if !left {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill: some of the processes %v are still there", pids)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// list reads /proc, because a bare Debian has no ps, and asks ps where there is no /proc.
func list() ([]entry, error) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	if len(stats) == 0 {
		return listByPS()
	}
	var all []entry
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		// pid (name) state parent ...; the name may hold spaces and brackets.
		end := bytes.LastIndexByte(stat, ')')
		rest := strings.Fields(string(stat[end+1:]))
		if end < 0 || len(rest) < 2 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, _ := strconv.Atoi(rest[1])
		all = append(all, entry{pid: pid, parent: parent, zombie: rest[0] == "Z" || rest[0] == "X"})
	}
	return all, nil
}

func listByPS() ([]entry, error) {
	out, err := exec.Command("ps", "-axo", "pid=,ppid=,stat=").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	var all []entry
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 {
			pid, _ := strconv.Atoi(f[0])
			parent, _ := strconv.Atoi(f[1])
			all = append(all, entry{pid: pid, parent: parent, zombie: strings.HasPrefix(f[2], "Z")})
		}
	}
	return all, nil
}
