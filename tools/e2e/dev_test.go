package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// startDev starts `lockstep dev`, which ends with the test.
func startDev(t *testing.T, dir string, args ...string) *cluster.Dev {
	t.Helper()
	d, err := cluster.StartDev(t.Context(), cluster.DevOptions{
		Binary: program, Dir: dir, Logs: t.TempDir(), Args: append([]string{"--size", "128M"}, args...),
	})
	if d != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(d.LogTail(4000))
				logs, _ := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
				for _, name := range logs {
					b, _ := os.ReadFile(name)
					t.Logf("--- %s ---\n%s", filepath.Base(name), b[max(0, len(b)-3000):])
				}
			}
			d.Kill()
		})
	}
	must(t, err)
	return d
}

// awaitGone waits until none of the processes is left.
func awaitGone(t *testing.T, pids []int) {
	t.Helper()
	must(t, cluster.Await(t.Context(), 20*time.Second, "the children's end", func() error {
		for _, pid := range pids {
			if cluster.Alive(pid) {
				return os.ErrExist
			}
		}
		return nil
	}))
}

// children are dev's child processes: a view server, two nodes, a gateway.
func children(t *testing.T, d *cluster.Dev) []int {
	t.Helper()
	pids, err := d.Children()
	must(t, err)
	if len(pids) != 4 {
		t.Fatalf("dev has the children %v, want 4", pids)
	}
	return pids
}

func TestDevIsReadyAndSafeAndTakesItsChildrenWithIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	began := time.Now()
	d := startDev(t, dir)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the ready line took %v", took)
	}
	if lines := strings.Count(d.Stdout(), "\n"); lines != 1 {
		t.Errorf("standard output is %q, want one line", d.Stdout())
	}
	s, code, err := d.Status(t.Context())
	must(t, err)
	if code != 0 || len(s.Volumes) != 1 || s.Volumes[0].State != "safe" || len(s.Volumes[0].View.Backups) != 1 {
		t.Errorf("exit code %d, status %+v, want a safe volume with a backup", code, s)
	}

	ledger := clean(t, d.URI)
	run := tormentIt(t, d.URI, ledger, seed(t), false)
	run.goesOn(1000)
	run.stop()

	pids := children(t, d)
	must(t, d.Signal(syscall.SIGINT))
	if err := d.Wait(20 * time.Second); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	awaitGone(t, pids)

	d = startDev(t, dir) // goes on with what is there
	verify(t, d.URI, ledger)
	pids = children(t, d)
	d.Kill()
	awaitGone(t, pids)

	d = startDev(t, dir)
	verify(t, d.URI, ledger)
}

func TestStatusExitCodeIsTheVerdict(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"))
	code := func(want int, state string) {
		t.Helper()
		must(t, cluster.Await(t.Context(), serveLimit, "volume "+state, func() error {
			s, code, err := d.Status(t.Context())
			if err == nil && (code != want || s.Volumes[0].State != state) {
				err = fmt.Errorf("it is %s, exit code %d", s.Volumes[0].State, code)
			}
			return err
		}))
	}
	code(0, "safe")
	first, pid, err := d.Primary(t.Context())
	must(t, err)
	must(t, d.KillNode(pid))
	code(1, "degraded")
	second, pid, err := d.Primary(t.Context())
	must(t, err)
	if second == first {
		t.Fatalf("%s is dead and still primary", first)
	}
	must(t, d.KillNode(pid))
	code(2, "unavailable")
	must(t, d.Restart(t.Context(), second))
	code(1, "degraded")
	must(t, d.Restart(t.Context(), first))
	code(0, "safe")

	view := d.View()
	d.Kill()
	r, err := cluster.Command(t.Context(), program, "status", "--json", "--view", view)
	must(t, err)
	if r.Code != 3 {
		t.Errorf("without a view server: exit code %d, want 3; %s", r.Code, r.Line())
	}
	oneLine(t, r)
}

func TestSecondDevOnTheSameDirectoryIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	d := startDev(t, dir)
	ports, err := cluster.FreePorts(1)
	must(t, err)
	r, err := cluster.Command(t.Context(), program, "dev", "--dir", dir, "--listen", ports[0])
	must(t, err)
	refused(t, r, "in use", dir)
	if !d.Running() {
		t.Error("the first dev has ended")
	}
	withDisk(t, d.URI, func(k *stamped.NBD) { must(t, k.ReadAt(make([]byte, 4096), 0)) })
}

func TestDevSaysWhichPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	addr := l.Addr().String()
	r, err := cluster.Command(t.Context(), program, "dev", "--dir", filepath.Join(t.TempDir(), "dev"), "--listen", addr)
	must(t, err)
	refused(t, r, "in use", addr)
}

// refused checks that a command failed with one line that has all the parts.
func refused(t *testing.T, r cluster.Result, parts ...string) {
	t.Helper()
	if r.Code == 0 {
		t.Errorf("exit code 0, want a refusal; %s", r.Line())
	}
	oneLine(t, r)
	for _, p := range parts {
		if !strings.Contains(r.Stderr, p) {
			t.Errorf("%q does not mention %q", r.Line(), p)
		}
	}
}

// oneLine checks the form of an error message.
func oneLine(t *testing.T, r cluster.Result) {
	t.Helper()
	lines := strings.Split(r.Line(), "\n")
	last := lines[len(lines)-1]
	if len(lines) != 1 || !strings.HasPrefix(last, "lockstep: ") {
		t.Errorf("standard error is %q, want one line that begins with \"lockstep: \"", r.Stderr)
	}
	if strings.Contains(r.Stderr, "goroutine ") || strings.Contains(r.Stderr, "panic") {
		t.Errorf("it panicked: %s", r.Stderr)
	}
}
