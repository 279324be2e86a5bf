package nbd_test

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev/nbd"
	"lockstep/tools/e2e/cluster"
)

// The conformance suite talks to a server byte by byte. It runs against this package's server, which must pass every
// case, and against other people's, so that the cases themselves are known to be right: a case that a good server fails
// is in doubt until its entry in failures says why.

// diskSize is what every server under test exports.
const diskSize = 64 << 20

// grade says what a case holds a server to.
type grade string

const (
	must    grade = "must"    // the specification's MUST
	should  grade = "should"  // its SHOULD
	quality grade = "quality" // what it leaves open and a good server does
)

// conformanceCase is one demand on a server.
type conformanceCase struct {
	grade grade
	name  string
	test  func(t testing.TB, p *peer)
}

// peer is a server under test, with an export "disk" of diskSize bytes.
type peer struct {
	addr        string // as nbd.Dial takes it
	description string // of the export
	// failures are the cases that it is known to fail, and how. This package's server has none.
	failures map[string]string
	tries    int // of a case; 0 is one

	hasty bool // the present case is known to fail: not worth a long wait
}

// knownTimeout is how long a case is waited for that is known to fail.
const knownTimeout = 300 * time.Millisecond

// dial connects.
func (p *peer) dial(t testing.TB) *raw {
	t.Helper()
	r := dialRaw(t, p.addr)
	if p.hasty {
		r.nc.SetDeadline(time.Now().Add(knownTimeout))
	}
	return r
}

// attach enters transmission by GO, with simple replies.
func (p *peer) attach(t testing.TB) *raw {
	t.Helper()
	r := p.dial(t)
	r.hello(3)
	r.goIn()
	return r
}

// attachStructured enters transmission with structured replies, and with base:allocation if the server has it.
func (p *peer) attachStructured(t testing.TB) (r *raw, context uint32) {
	t.Helper()
	r = p.dial(t)
	r.hello(3)
	r.option(optStructured, nil)
	r.wantReply(optStructured, repAck)
	r.option(optSetMeta, metaData("disk", "base:allocation"))
	kind, data := r.reply(optSetMeta)
	if kind != repMeta || string(data[4:]) != "base:allocation" {
		t.Fatalf("SET_META_CONTEXT: %#x %q", kind, data)
	}
	r.wantReply(optSetMeta, repAck)
	r.goIn()
	return r, uint32(data[0])<<24 | uint32(data[1])<<16 | uint32(data[2])<<8 | uint32(data[3])
}

// goIn sends GO for the disk and takes the answers; it returns the transmission flags.
func (r *raw) goIn() (flags uint16) {
	r.t.Helper()
	r.option(optGo, goData("disk"))
	return r.infos(optGo)
}

// infos takes the answers to INFO or GO.
func (r *raw) infos(option uint32) (flags uint16) {
	r.t.Helper()
	for {
		switch kind, data := r.reply(option); {
		case kind == repAck:
			return flags
		case kind == repInfo && len(data) == 12 && data[0] == 0 && data[1] == 0:
			flags = uint16(data[10])<<8 | uint16(data[11])
		case kind != repInfo:
			r.t.Fatalf("option %d: reply %#x %q", option, kind, data)
		}
	}
}

// attempt runs a case and returns why it failed, or "".
func attempt(t *testing.T, test func(t testing.TB)) string {
	v := &verdict{TB: t}
	finished := make(chan struct{})
	go func() { // ends with the case, whose waits all have limits
		defer close(finished)
		test(v)
	}()
	<-finished
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failure
}

// verdict is a testing.TB that keeps a failure to itself.
type verdict struct {
	testing.TB

	mu      sync.Mutex // guards failure: a case's goroutines may end after the case
	failure string     // the first
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.mu.Lock()
	v.failure = cmp.Or(v.failure, fmt.Sprintf(format, args...))
	v.mu.Unlock()
	runtime.Goexit()
}
func (v *verdict) Fatal(args ...any)                 { v.Fatalf("%s", fmt.Sprintln(args...)) }
func (v *verdict) Errorf(format string, args ...any) { v.Fatalf(format, args...) }
func (v *verdict) Error(args ...any)                 { v.Fatal(args...) }

// Every case, of every grade, holds of this server.
func TestConformance(t *testing.T) {
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "disk", Description: "sparse", Device: newSparse(diskSize), FastZero: true}}})
	judge(t, &peer{addr: addr, description: "sparse"})
}

// Every case holds of a gateway, with a primary and a backup behind it, and of the primary itself.
func TestConformanceOfACluster(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and starts a cluster")
	}
	binary, err := cluster.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Binary: binary, Dir: t.TempDir(), Volume: "disk", Size: fmt.Sprint(diskSize), NodeArgs: []string{"--log-size", "256M"},
	})
	if c != nil {
		t.Cleanup(c.KillAll)
	}
	if err != nil {
		t.Fatal(err)
	}
	gateway, _, _ := strings.Cut(strings.TrimPrefix(c.URI, "nbd://"), "/")
	t.Run("gateway", func(t *testing.T) {
		judge(t, &peer{addr: gateway, description: "Lockstep volume"})
	})
	primary, err := c.Primary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("primary", func(t *testing.T) { judge(t, &peer{addr: c.NBDAddr(primary)}) })
}

// The cases are right: what other servers do is what is expected, but for known differences.
// othersTries is how often another server may fail: that it passes once shows that the case is right, and a race of its
// own is not this package's business.
const othersTries = 3

func TestConformanceOfOthers(t *testing.T) {
	t.Run("nbdkit", func(t *testing.T) {
		judge(t, &peer{addr: startNbdkit(t), failures: nbdkitFailures, tries: othersTries})
	})
	t.Run("qemu-nbd", func(t *testing.T) {
		needTool(t, "qemu-nbd")
		path := filepath.Join(t.TempDir(), "s")
		startServer(t, path, "qemu-nbd", "--persistent", "--shared=0", "--export-name=disk", "--format=raw", "--discard=unmap",
			"--description=sparse", "--socket="+path, emptyDisk(t, diskSize))
		judge(t, &peer{addr: "unix:" + path, description: "sparse", failures: qemuFailures, tries: othersTries})
	})
	t.Run("nbd-server", func(t *testing.T) {
		judge(t, &peer{addr: startNBDServer(t, diskSize), failures: nbdServerFailures, tries: othersTries})
	})
}

// judge runs all cases.
func judge(t *testing.T, p *peer) {
	cases, passed := slices.Concat(handshakeCases, transmissionCases), 0
	defer func() { t.Logf("%d of %d cases pass", passed, len(cases)) }()
	for _, c := range cases {
		t.Run(string(c.grade)+"/"+c.name, func(t *testing.T) {
			known := p.failures[c.name]
			p.hasty = known != ""
			failure := attempt(t, func(t testing.TB) { c.test(t, p) })
			for n := 1; failure != "" && known == "" && n < p.tries; n++ {
				failure = attempt(t, func(t testing.TB) { c.test(t, p) })
			}
			p.hasty = false
			if failure == "" {
				failure = attempt(t, func(t testing.TB) { // whatever it was, the server is as well as before
					r := p.attach(t)
					r.request(0, cmdFlush, 1, 0, 0)
					r.wantSimple(0, 1)
				})
			}
			if failure == "" {
				passed++
			}
			switch {
			case failure != "" && known == "":
				t.Errorf("%s", failure)
			case failure != "":
				t.Logf("known: %s (%s)", known, failure)
			case known != "":
				t.Logf("passes, though it is known that: %s", known)
			}
		})
	}
}

// emptyDisk makes a file of n bytes, all a hole.
func emptyDisk(t *testing.T, n int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
	return path
}

// startServer runs a program that serves a unix socket, until the test ends.
func startServer(t *testing.T, socket, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s says: %s", name, out.String())
		}
	})
	until(t, name+" listens", func() bool {
		nc, err := net.Dial("unix", socket)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

func startNbdkit(t *testing.T) string {
	t.Helper()
	needTool(t, "nbdkit")
	path := filepath.Join(t.TempDir(), "s")
	startServer(t, path, "nbdkit", "--foreground", "--exit-with-parent", "--unix", path, "memory", fmt.Sprint(diskSize))
	return "unix:" + path
}

// startNBDServer runs the reference implementation. It insists on becoming a daemon, so it gets a PID namespace of its
// own, with which it ends.
func startNBDServer(t *testing.T, n int64) string {
	t.Helper()
	needTool(t, "nbd-server", "unshare")
	if os.Geteuid() != 0 {
		t.Skip("only root can hold nbd-server in a PID namespace")
	}
	dir, disk := t.TempDir(), emptyDisk(t, n)
	path, config := filepath.Join(dir, "s"), filepath.Join(dir, "config")
	text := fmt.Sprintf("[generic]\nunixsock = %s\nallowlist = true\nport = %d\nlistenaddr = 127.0.0.1\n"+
		"[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n", path, freePort(t), disk)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startServer(t, path, "unshare", "--pid", "--fork", "--kill-child", "sh", "-c", `nbd-server -C "$0"; exec sleep infinity`, config)
	return "unix:" + path
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// soon is long enough for what is to happen at once, and short enough to wait for what is not to happen.
const soon = 50 * time.Millisecond
