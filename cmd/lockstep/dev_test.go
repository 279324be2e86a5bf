package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testPatience is how long anything may take in these tests, on a busy machine and under the race detector.
const testPatience = 60 * time.Second

// devRun is a `lockstep dev` process of a test.
type devRun struct {
	t     *testing.T
	cmd   *exec.Cmd
	ready string // the line
	done  chan struct{}

	mu     sync.Mutex
	stderr bytes.Buffer
}

// Write collects standard error.
func (d *devRun) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stderr.Write(b)
}

func (d *devRun) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stderr.String()
}

// startDev starts dev in a directory, and waits for its ready line. The test ends it.
func startDev(t *testing.T, dir string, args ...string) *devRun {
	t.Helper()
	d := &devRun{t: t, done: make(chan struct{})}
	d.cmd = exec.Command("lockstep", append([]string{"dev", "--dir", dir}, args...)...)
	d.cmd.Stderr = d
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 16)
	go func() { // ends with the process
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			lines <- scan.Text()
		}
		close(lines)
		_ = d.cmd.Wait()
		close(d.done)
	}()
	t.Cleanup(func() {
		d.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("dev said:\n%s", d.said())
		}
		for line := range lines {
			t.Errorf("dev printed one more line on standard output: %q", line)
		}
	})
	select {
	case line, ok := <-lines:
		if !ok {
			t.Fatalf("dev ended: %s", d.said())
		}
		d.ready = line
	case <-time.After(testPatience):
		t.Fatal("dev is not ready")
	}
	return d
}

// stop sends a signal and waits for the end.
func (d *devRun) stop(s syscall.Signal) {
	_ = d.cmd.Process.Signal(s)
	select {
	case <-d.done:
	case <-time.After(testPatience):
		_ = d.cmd.Process.Kill()
		d.t.Errorf("dev did not end after %s", s)
	}
}

// children are the pids of the processes that dev started.
func (d *devRun) children() []int {
	d.t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				d.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// lockstep runs an operator's command to its end.
func lockstep(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "lockstep", args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	_ = cmd.Run() // the exit code says it
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

func eventually(t *testing.T, what string, look func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testPatience); !look(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", testPatience, what)
		}
		<-time.After(pollPeriod)
	}
}

func layoutOf(t *testing.T, dir string) (layout devLayout) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, devLayoutFile))
	if err == nil {
		err = json.Unmarshal(b, &layout)
	}
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

func statusOf(t *testing.T, view string) (report statusReport, code int) {
	t.Helper()
	out, _, code := lockstep(t, "status", "--json", "--view", view)
	if code != exitCannotTell {
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err)
		}
	}
	return report, code
}

// TestDevFromTheFirstStartToTheLast is the life of a dev cluster: new, its primary killed and restarted, refused to a
// second dev, stopped, gone on with, and killed.
func TestDevFromTheFirstStartToTheLast(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole clusters")
	}
	// The usual port is taken: by this test, or by whoever has it.
	if l, err := net.Listen("tcp", devView); err == nil {
		defer l.Close()
	}
	// A directory whose name is longer than the address of a unix socket can be.
	home := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	dir := filepath.Join(home, devDefaultDir)
	d := startDev(t, dir, "--listen", freeAddr(t), "--size", "64M")
	layout := layoutOf(t, dir)
	if want := "ready nbd://" + layout.Listen + "/vol0"; d.ready != want {
		t.Errorf("ready line %q, want %q", d.ready, want)
	}

	if want := "port 7400 is taken (see `ss -ltnp sport = :7400`), the view server listens at " + layout.View; !strings.Contains(d.said(), want) {
		t.Errorf("dev did not say %q", want)
	}
	// Whoever is in the working directory of the dev need not name it.
	status := exec.Command("lockstep", "status", "vol0")
	status.Dir = home
	if out, err := status.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "vol0 SAFE") {
		t.Errorf("status without --view: %v, %s", err, out)
	}

	// Ready means that a client can write, and that every copy is there.
	report, code := statusOf(t, layout.View)
	if code != exitOK || len(report.Volumes) != 1 || len(report.Volumes[0].View.Backups) != 1 {
		t.Fatalf("at the ready line: exit code %d, %+v", code, report)
	}
	if err := probeExport(t.Context(), layout.Listen, "vol0"); err != nil {
		t.Fatal(err)
	}
	primary := report.Volumes[0].View.Primary
	pid := 0
	for _, n := range report.Nodes {
		if n.ID == primary {
			pid = n.PID
		}
	}
	if hint := fmt.Sprintf("kill -9 %d\n", pid); !strings.Contains(d.said(), hint) {
		t.Errorf("no line for killing the primary (%q)", hint)
	}

	// The directory is taken.
	if _, stderr, code := lockstep(t, "dev", "--dir", dir); code != exitFailed || !strings.Contains(stderr, "in use by another lockstep dev (pid "+strconv.Itoa(d.cmd.Process.Pid)+")") {
		t.Errorf("a second dev in the same directory: exit code %d, %s", code, stderr)
	}

	// A primary that dies is replaced, and stays dead until it is told.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another primary", func() bool {
		report, code = statusOf(t, layout.View)
		return code == exitDegraded && report.Volumes[0].View.Primary != primary
	})
	if err := probeExport(t.Context(), layout.Listen, "vol0"); err != nil {
		t.Errorf("after the failover: %v", err)
	}
	if !strings.Contains(d.said(), fmt.Sprintf("%s (pid %d) is dead: signal: killed; start it again: ", primary, pid)) {
		t.Errorf("dev did not say that %s is dead", primary)
	}
	if stdout, stderr, code := lockstep(t, "dev", "restart", primary, "--dir", dir); code != exitOK || !strings.HasPrefix(stdout, primary+" runs, pid ") {
		t.Fatalf("dev restart: exit code %d, %s%s", code, stdout, stderr)
	}
	eventually(t, "every copy again", func() bool {
		_, code = statusOf(t, layout.View)
		return code == exitOK
	})
	if _, stderr, code := lockstep(t, "dev", "restart", "n7", "--dir", dir); code != exitFailed || stderr != "lockstep: dev: there is no \"n7\" here: name one of v1, gateway, n1, n2\n" {
		t.Errorf("dev restart n7: exit code %d, %s", code, stderr)
	}

	// Stopped, it leaves nobody behind, and can be gone on with, at the same addresses.
	children := d.children()
	if len(children) != 4 {
		t.Errorf("children %v, want a view server, two nodes and a gateway", children)
	}
	d.stop(syscall.SIGTERM)
	if code := d.cmd.ProcessState.ExitCode(); code != exitOK {
		t.Errorf("dev ended with exit code %d", code)
	}
	gone(t, children)
	if _, stderr, _ := lockstep(t, "dev", "restart", "n1", "--dir", dir); !strings.Contains(stderr, "no lockstep dev runs in") {
		t.Errorf("dev restart without a dev: %s", stderr)
	}
	if _, stderr, code := lockstep(t, "dev", "--dir", dir, "--size", "1G"); code != exitFailed || !strings.Contains(stderr, "vol0 has 64 MiB, not 1 GiB: leave --size out") {
		t.Errorf("dev with another size: exit code %d, %s", code, stderr)
	}
	d = startDev(t, dir)
	if again := layoutOf(t, dir); fmt.Sprint(again) != fmt.Sprint(layout) {
		t.Errorf("layout %v, before %v", again, layout)
	}
	if report, code := statusOf(t, layout.View); code != exitOK || report.Volumes[0].View.Num < 3 {
		t.Errorf("after the second start: exit code %d, %+v", code, report)
	}

	// Killed, it takes its children with it.
	children = d.children()
	d.stop(syscall.SIGKILL)
	gone(t, children)
}

// gone waits until processes have ended, and ends them itself if they do not.
func gone(t *testing.T, pids []int) {
	t.Helper()
	defer func() {
		for _, pid := range pids {
			if t.Failed() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("the end of process %d", pid), func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, state, _ := strings.Cut(string(stat), ") ")
			return err != nil || strings.HasPrefix(state, "Z") // a zombie waits for its new parent only
		})
	}
}

// TestDevNamesWhatKeepsItFromStarting: the error is the cause, and nothing is left behind.
func TestDevNamesWhatKeepsItFromStarting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	_, stderr, code := lockstep(t, "dev", "--dir", filepath.Join(t.TempDir(), "d"), "--listen", taken)
	if want := "lockstep: dev: " + taken + " (the gateway, --listen) is in use: stop what listens there"; code != exitFailed || !strings.HasPrefix(lastLine(stderr), want) {
		t.Errorf("exit code %d, %s; want %s", code, stderr, want)
	}

	// A role that fails says why, through dev.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, devServer), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = lockstep(t, "dev", "--dir", dir, "--listen", freeAddr(t))
	if line := lastLine(stderr); code != exitFailed || !strings.HasPrefix(line, "lockstep: dev: v1 did not start: exit status 1: viewd: data directory") || !strings.HasSuffix(line, "logs/v1.log") {
		t.Errorf("exit code %d, %s", code, stderr)
	}

	// A directory that was tampered with.
	if err := os.WriteFile(filepath.Join(dir, devLayoutFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code = lockstep(t, "dev", "--dir", dir); code != exitFailed || !strings.Contains(stderr, "dev.json: addresses are missing: repair it") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// TestPortsOfALayoutStay: what was chosen once is kept, what is added keeps clear of it.
func TestPortsOfALayoutStay(t *testing.T) {
	layout := devLayout{Listen: "127.0.0.1:0"}
	ports, err := reserve(&layout, 2)
	if err != nil {
		t.Fatal(err)
	}
	// While they are held nobody else chooses them.
	other := devLayout{Listen: "127.0.0.1:0"}
	others, err := reserve(&other, 2)
	if err != nil {
		t.Fatal(err)
	}
	others.Close()
	ports.Close()
	seen := map[string]bool{}
	for _, l := range []devLayout{layout, other} {
		for _, addr := range []string{l.Listen, l.View, l.Nodes[0].Listen, l.Nodes[0].NBD, l.Nodes[1].Listen, l.Nodes[1].NBD} {
			if seen[addr] || checkReachable(addr) != nil {
				t.Errorf("%s is given twice, or is no address", addr)
			}
			seen[addr] = true
		}
	}
	before := fmt.Sprint(layout)
	if ports, err = reserve(&layout, 2); err != nil || fmt.Sprint(layout) != before {
		t.Errorf("%v: %v, before %s", err, layout, before)
	}
	ports.Close()
	if ports, err = reserve(&layout, 3); err != nil || len(layout.Nodes) != 3 || fmt.Sprint(layout.Nodes[:2]) != fmt.Sprint(devLayout{Nodes: layout.Nodes[:2]}.Nodes) {
		t.Errorf("%v: %v", err, layout)
	}
	ports.Close()
}
