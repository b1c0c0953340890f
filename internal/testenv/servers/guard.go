package servers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// guardScript ends what was entrusted to it when its standard input ends, which is when the process
// that holds the other end closes it or dies. Lines of the input:
//
//	add SIGNAL GROUP   end this process group: by SIGNAL, and by KILL if it is still there 2 s later
//	del SIGNAL GROUP   it has ended
//	run FILE           run this shell script
//
// What was added last is ended first. The argument is a folder to remove. It has to run in dash, whose
// kill takes a process group only behind -s.
const guardScript = `
trap '' INT TERM HUP QUIT
all= scripts=
while read -r op a b; do
	case $op in
	add) all="$a:$b $all" ;;
	del) rest=; for e in $all; do [ "$e" = "$a:$b" ] || rest="$rest $e"; done; all=$rest ;;
	run) scripts="$scripts $a" ;;
	esac
done
for s in $scripts; do sh "$s"; done
for e in $all; do kill -s "${e%%:*}" -- "-${e#*:}"; kill -s CONT -- "-${e#*:}"; done
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	left=; for e in $all; do kill -s 0 -- "-${e#*:}" && left=1; done
	[ -n "$left" ] || break
	sleep 0.1
done
for e in $all; do kill -s KILL -- "-${e#*:}"; done
for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" && break; sleep 0.1; done
`

// entrusted starts a command in such a way that the guard knows its process group before the command
// runs: there is no moment at which our death would leave it behind. Descriptor 3 is the guard's
// input, and the command does not inherit it.
const entrusted = `echo "add $0 $$" >&3; exec 3>&-; exec "$@"`

// guard cleans up after this process, whether it ends or is killed.
type guard struct {
	cmd   *exec.Cmd
	input *os.File
}

// newGuard starts a guard that also removes folder.
func newGuard(folder string) (*guard, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("guard: pipe: %w", err)
	}
	defer read.Close()
	cmd := exec.Command("sh", "-c", guardScript, "guard", folder)
	cmd.Stdin = read
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt at the terminal is not for it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guard: start: %w", errors.Join(err, write.Close()))
	}
	return &guard{cmd: cmd, input: write}, nil
}

// command is exec.Command for a process in a session of its own, that is ended with the guard. By
// is the signal that ends it.
func (g *guard) command(by syscall.Signal, argv ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", entrusted, strconv.Itoa(int(by))}, argv...)...)
	cmd.ExtraFiles = []*os.File{g.input}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// add entrusts a process group.
func (g *guard) add(by syscall.Signal, group int) error { return g.tell("add", by, group) }

// del says that a process group has ended, so that whoever gets its number next is not hit.
func (g *guard) del(by syscall.Signal, group int) error { return g.tell("del", by, group) }

func (g *guard) tell(what string, by syscall.Signal, group int) error {
	_, err := fmt.Fprintf(g.input, "%s %d %d\n", what, by, group)
	return err
}

// run has a shell script run at the end.
func (g *guard) run(file string) error {
	_, err := io.WriteString(g.input, "run "+file+"\n")
	return err
}

// close makes the guard do its work and waits for it.
func (g *guard) close() error {
	if err := g.input.Close(); err != nil {
		return fmt.Errorf("guard: close: %w", err)
	}
	late := time.AfterFunc(3*time.Minute, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}
