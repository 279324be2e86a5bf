package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a process may take to stop in good order.
const stopGrace = 30 * time.Second

// ErrDown is returned when a process is asked for something and does not run.
var ErrDown = errors.New("cluster: the process does not run")

// Process is a role that can be started again and again with the same arguments. Its output is appended to a log.
type Process struct {
	Name   string
	binary string
	args   []string
	log    string
	stdout io.Writer // nil: the log

	// mu guards everything below.
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd was waited for
	err  error         // how it ended; valid after done
}

// NewProcess describes a process; Start starts it.
func NewProcess(name, binary, logDir string, args ...string) *Process {
	return &Process{Name: name, binary: binary, args: args, log: filepath.Join(logDir, name+".log")}
}

// Start runs the process. It must not be running.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runningLocked() {
		return fmt.Errorf("cluster: start %s: it runs", p.Name)
	}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("cluster: start %s: %w", p.Name, err)
	}
	defer f.Close() // the child has its own descriptor
	cmd := exec.Command(p.binary, p.args...)
	cmd.Stdout, cmd.Stderr = f, f
	if p.stdout != nil {
		cmd.Stdout = p.stdout
	}
	// The children do not outlive a test process that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := theForker().start(cmd); err != nil {
		return fmt.Errorf("cluster: start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() { // ends with the process
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

func (p *Process) runningLocked() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Running tells whether the process is there, if only paused.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runningLocked()
}

// PID is the process's number, 0 if it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.runningLocked() {
		return 0
	}
	return p.cmd.Process.Pid
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.runningLocked() {
		return fmt.Errorf("%w: %s", ErrDown, p.Name)
	}
	return p.cmd.Process.Signal(sig)
}

// Kill ends the process with SIGKILL and waits for its end. It is fine if it does not run.
func (p *Process) Kill() {
	if p.Signal(syscall.SIGKILL) == nil {
		<-p.ended()
	}
}

// Pause stops the process with SIGSTOP, and waits until each of its threads has stopped: the signal does not wait for
// them, and one in a sync goes on until that is done. What is sent to the process after Pause it has not seen before
// Resume.
func (p *Process) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return Await(context.Background(), stopGrace, "every thread of "+p.Name+" stopped", func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		if err != nil || len(threads) == 0 {
			return ErrDown
		}
		for _, name := range threads {
			stat, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			// The state follows the command's name, which is in brackets and may hold anything.
			if _, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')'):], []byte(" ")); len(rest) == 0 || rest[0] != 'T' {
				return fmt.Errorf("a thread of %s runs: %s", p.Name, stat)
			}
		}
		return nil
	})
}

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Stop asks the process to end in good order, and waits. One that does not is killed, which is an error.
func (p *Process) Stop() error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.Wait(stopGrace)
}

// Wait waits for the process to end by itself and returns how it did. One that does not is killed.
func (p *Process) Wait(limit time.Duration) error {
	select {
	case <-p.ended():
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("cluster: %s did not stop within %v", p.Name, limit)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("cluster: %s: %w", p.Name, p.err)
	}
	return nil
}

// ended is closed when the present run has ended.
func (p *Process) ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// LogTail is the end of the log, at most n bytes.
func (p *Process) LogTail(n int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(b) > n {
		b = b[len(b)-n:]
		if _, rest, ok := bytes.Cut(b, []byte("\n")); ok {
			b = rest
		}
	}
	return string(b)
}
