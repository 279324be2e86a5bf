package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// devStopGrace is how long a child has to stop in good order before it is killed.
const devStopGrace = 10 * time.Second

// devLastLineMax is how much of a child's log is looked at for its last line.
const devLastLineMax = 4096

// spawner starts child processes that die with this one, even if it is killed with SIGKILL.
//
// Linux sends the death signal when the *thread* that forked the child ends, and the Go runtime moves goroutines between
// threads. So one goroutine, locked to its thread, forks all of them and lives until they have ended.
type spawner struct {
	requests chan spawnRequest
}

type spawnRequest struct {
	cmd *exec.Cmd
	err chan<- error
}

// newSpawner starts the goroutine; Close stops it. It blocks on nothing but fork.
func newSpawner() *spawner {
	s := &spawner{requests: make(chan spawnRequest)}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it what is left of the children
		for r := range s.requests {
			r.err <- r.cmd.Start()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	err := make(chan error)
	s.requests <- spawnRequest{cmd, err}
	return <-err
}

// Close ends the thread, which kills children that are still there. No start may follow.
func (s *spawner) Close() { close(s.requests) }

// child is one run of one role.
type child struct {
	name string
	pid  int
	cmd  *exec.Cmd

	log      string
	logStart int64 // where this run's part of the log begins

	done chan struct{} // closed when the process has ended
	err  error         // how; valid after done
}

// startChild runs this program in another role. Its output goes to the end of a log file.
func startChild(s *spawner, exe, name, log string, args []string) (*child, error) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("dev: start %s: %w", name, err)
	}
	defer f.Close() // the child has its own descriptor
	start, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("dev: start %s: %w", name, err)
	}
	c := &child{name: name, log: log, logStart: start, done: make(chan struct{})}
	c.cmd = exec.Command(exe, args...)
	c.cmd.Stdout, c.cmd.Stderr = f, f
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// A Ctrl-C at the terminal goes to the whole process group of the dev process. The children are to hear of it from
		// the dev process only, in the right order.
		Setpgid: true,
	}
	if err := s.start(c.cmd); err != nil {
		return nil, fmt.Errorf("dev: start %s: %w", name, err)
	}
	c.pid = c.cmd.Process.Pid
	// Ends when the process does; the spawner's death signal sees to it that it does.
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// stop asks the child to stop, and kills it when it does not.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended: fine
	select {
	case <-c.done:
	case <-time.After(devStopGrace):
		_ = c.cmd.Process.Kill()
		<-c.done
	}
}

// fate says how the child ended, with its own words if it left any.
func (c *child) fate() string {
	how := "ended"
	var exit *exec.ExitError
	if errors.As(c.err, &exit) {
		how = exit.ProcessState.String()
	}
	if line := c.lastLine(); line != "" {
		return how + ": " + line
	}
	return how
}

// lastLine is the error line that this run ended with, if there is one.
func (c *child) lastLine() string {
	f, err := os.Open(c.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(c.logStart, size-devLastLineMax)
	b := make([]byte, max(size-from, 0))
	n, _ := f.ReadAt(b, from)
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	last, isError := strings.CutPrefix(lines[len(lines)-1], "lockstep: ")
	if !isError {
		return ""
	}
	return last
}
