package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DevOptions describe a `lockstep dev`.
type DevOptions struct {
	Binary string
	Dir    string   // of dev; it makes it
	Logs   string   // directory for the output of dev itself; must exist
	Listen string   // of the gateway; "" takes a free port
	Args   []string // more of them
}

// Dev is a running `lockstep dev`.
type Dev struct {
	*Process
	URI  string
	o    DevOptions
	out  *lineWriter
	view string
}

// StartDev starts `lockstep dev` and waits for its ready line. If it fails the Dev is returned too, for its log;
// it does not run then.
func StartDev(ctx context.Context, o DevOptions) (*Dev, error) {
	if o.Listen == "" {
		ports, err := FreePorts(1)
		if err != nil {
			return nil, err
		}
		o.Listen = ports[0]
	}
	args := append([]string{"dev", "--dir", o.Dir, "--listen", o.Listen}, o.Args...)
	d := &Dev{Process: NewProcess("dev", o.Binary, o.Logs, args...), o: o, out: newLineWriter()}
	d.stdout = d.out
	if err := d.Start(); err != nil {
		return d, err
	}
	select {
	case line := <-d.out.first:
		uri, ok := strings.CutPrefix(line, "ready ")
		if !ok {
			d.Kill()
			return d, fmt.Errorf("cluster: dev printed %q, want a ready line", line)
		}
		d.URI = uri
	case <-d.ended():
		err := d.Wait(0)
		return d, fmt.Errorf("cluster: dev ended: %w: %s", err, d.LogTail(2000))
	case <-time.After(startLimit):
		d.Kill()
		return d, fmt.Errorf("cluster: dev: no ready line within %v: %s", startLimit, d.LogTail(2000))
	case <-ctx.Done():
		d.Kill()
		return d, ctx.Err()
	}
	view, err := d.findView()
	if err != nil {
		d.Kill()
		return d, err
	}
	d.view = view
	return d, nil
}

// View is the address of dev's view server.
func (d *Dev) View() string { return d.view }

// findView takes the address of the view server out of dev's layout file.
func (d *Dev) findView() (string, error) {
	b, err := os.ReadFile(filepath.Join(d.o.Dir, "dev.json"))
	if err != nil {
		return "", fmt.Errorf("cluster: dev: %w", err)
	}
	var layout struct{ View string }
	if err := json.Unmarshal(b, &layout); err != nil || layout.View == "" {
		return "", fmt.Errorf("cluster: dev.json names no view server: %q", b)
	}
	return layout.View, nil
}

// Status asks dev's view server.
func (d *Dev) Status(ctx context.Context) (Status, int, error) {
	return statusOf(func(args ...string) (Result, error) {
		return Command(ctx, d.o.Binary, append(args, "--view", d.view)...)
	})
}

// Primary is the primary's node and its pid.
func (d *Dev) Primary(ctx context.Context) (string, int, error) {
	s, _, err := d.Status(ctx)
	if err != nil {
		return "", 0, err
	}
	if len(s.Volumes) == 1 {
		for _, n := range s.Nodes {
			if n.ID == s.Volumes[0].View.Primary && n.Alive {
				return n.ID, n.PID, nil
			}
		}
	}
	return "", 0, fmt.Errorf("cluster: no living primary in %+v", s)
}

// KillNode sends SIGKILL to one of dev's children.
func (d *Dev) KillNode(pid int) error {
	if pid <= 1 {
		return fmt.Errorf("cluster: %d is no node's pid", pid)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// Restart asks dev to start a node again.
func (d *Dev) Restart(ctx context.Context, node string) error {
	r, err := Command(ctx, d.o.Binary, "dev", "restart", node, "--dir", d.o.Dir)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("cluster: dev restart %s: %s", node, r.Line())
	}
	return err
}

// AwaitSafe waits until every copy is in the view and up to date.
func (d *Dev) AwaitSafe(ctx context.Context) error {
	return Await(ctx, safeLimit, "volume safe", func() error {
		s, code, err := d.Status(ctx)
		if err == nil && code != 0 {
			err = fmt.Errorf("it is %+v", s.Volumes)
		}
		return err
	})
}

// Children are the pids of dev's children, found through the kernel.
func (d *Dev) Children() ([]int, error) { return childrenOf(d.PID()) }

// childrenOf lists the child processes of all threads of a process.
func childrenOf(pid int) ([]int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("cluster: process %d is gone", pid)
	}
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // that thread has ended
		}
		for _, field := range strings.Fields(string(b)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids, nil
}

// Alive tells whether a process exists and is no zombie.
func Alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// pid (comm) state …; comm may hold anything, also a parenthesis.
	i := bytes.LastIndexByte(b, ')')
	return i >= 0 && i+2 < len(b) && b[i+2] != 'Z' && b[i+2] != 'X'
}

// lineWriter hands out the first line that is written to it, and keeps all.
type lineWriter struct {
	first chan string

	mu  sync.Mutex
	all []byte
}

func newLineWriter() *lineWriter { return &lineWriter{first: make(chan string, 1)} }

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := bytes.IndexByte(w.all, '\n') >= 0
	w.all = append(w.all, p...)
	if line, _, ok := bytes.Cut(w.all, []byte("\n")); ok && !before {
		w.first <- string(line)
	}
	return len(p), nil
}

// Stdout is everything that dev printed on standard output.
func (d *Dev) Stdout() string {
	d.out.mu.Lock()
	defer d.out.mu.Unlock()
	return string(d.out.all)
}
