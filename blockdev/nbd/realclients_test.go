package nbd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/blockdev/nbd"
)

// toolTimeout bounds one run of a client program.
const toolTimeout = 2 * time.Minute

// needTool skips a test whose program is missing; on CI that is a failure.
func needTool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
}

// run runs a program, which must succeed, and returns what it says.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// realServers are an export of n bytes each from this package and, to see that a test itself is right, from nbdkit; as
// an URI over TCP and one over a Unix socket.
func realServers(t *testing.T, n int, test func(t *testing.T, tcp, unix string)) {
	t.Run("lockstep", func(t *testing.T) {
		x := exports{{Name: "disk", Device: memory(t, n)}}
		_, addr := serve(t, nbd.ServerOptions{Exporter: x})
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		serveOn(t, l, nbd.ServerOptions{Exporter: x})
		test(t, "nbd://"+addr+"/disk", "nbd+unix:///disk?socket="+path)
	})
	t.Run("nbdkit", func(t *testing.T) {
		needTool(t, "nbdkit")
		path := filepath.Join(t.TempDir(), "s")
		cmd := exec.Command("nbdkit", "--foreground", "--exit-with-parent", "--unix", path, "memory", fmt.Sprint(n))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		until(t, "nbdkit listens", func() bool { _, err := os.Stat(path); return err == nil })
		uri := "nbd+unix:///disk?socket=" + path
		test(t, uri, uri)
	})
}

// libnbd runs a Python script, with a handle h and the URI in uri. The interpreter is the first that knows libnbd: the
// system's package is for the system's interpreter.
func libnbd(t *testing.T, uri, script string) {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import nbd").Run() == nil {
			run(t, python, "-c", "import sys, nbd\nuri = sys.argv[1]\nh = nbd.NBD()\n"+script, uri)
			return
		}
	}
	needTool(t, "python3 with libnbd")
}

// libnbd gets what it asks for by every command, with its flags and errors; the last ones go around libnbd's own checks.
func TestLibnbdScript(t *testing.T) {
	const script = `
h.connect_uri(uri)
def fails(number, call, *args):
    try: call(*args)
    except nbd.Error as e: assert e.errno == number, (call, args, e.errno)
    else: raise AssertionError((call, args, "did not fail"))

size = h.get_size()
assert size == 64 << 20
assert h.can_multi_conn() and h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_fast_zero()
assert not h.is_read_only()
h.pwrite(b"hello" * 1000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 12345) == b"hello" * 1000
h.zero(1000, 12345, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1005, 12345) == bytes(1000) + b"hello"
h.trim(4096, 8192)
h.flush()
h.cache(4096, 0)
h.pwrite(b"x" * (32 << 20), 1)
assert h.pread(32 << 20, 1) == b"x" * (32 << 20)

# 200 at once, to places of their own, answered in any order
buffers = [nbd.Buffer.from_bytearray(bytearray([i]) * 4096) for i in range(200)]
cookies = [h.aio_pwrite(b, i * 4096) for i, b in enumerate(buffers)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
for i in range(200):
    assert h.pread(4096, i * 4096) == bytes([i]) * 4096

h.set_strict_mode(0)
fails("EINVAL", h.pread, 1, size)
fails("EINVAL", h.pread, 2, size - 1)
fails("ENOSPC", h.pwrite, b"xx", size - 1)
fails("ENOSPC", h.zero, 2, size - 1)
fails("EINVAL", h.trim, 2, size - 1)
assert h.pread(1, 1) is not None
h.shutdown()
`
	realServers(t, 64<<20, func(t *testing.T, tcp, unix string) {
		libnbd(t, tcp, script)
		libnbd(t, unix, script)
	})
}

// Without structured replies, and by EXPORT_NAME, it works as well.
func TestLibnbdWithoutModernOptions(t *testing.T) {
	realServers(t, 1<<20, func(t *testing.T, tcp, _ string) {
		for _, setup := range []string{
			"h.set_request_structured_replies(False)",
			"h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)", // with the zeroes behind EXPORT_NAME
			"h.set_handshake_flags(0)",                                 // EXPORT_NAME
		} {
			libnbd(t, tcp, setup+`
h.connect_uri(uri)
h.pwrite(b"abc", 5)
assert h.pread(3, 5) == b"abc"
h.shutdown()`)
		}
	})
}

// nbdinfo shows what is exported.
func TestNbdinfoListsExports(t *testing.T) {
	needTool(t, "nbdinfo")
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{
		{Name: "one", Description: "the first", Device: memory(t, 1<<20)}, {Name: "two", Device: memory(t, 2<<20), ReadOnly: true}}})
	out := run(t, "nbdinfo", "--list", "nbd://"+addr)
	for _, want := range []string{`export="one"`, "the first", `export="two"`, "export-size: 2097152", "is_read_only: true", "block_size_maximum: 33554432"} {
		if !strings.Contains(out, want) {
			t.Errorf("nbdinfo does not say %q:\n%s", want, out)
		}
	}
}

// randomFile makes a file of n bytes with data and holes.
func randomFile(t *testing.T, n int) string {
	t.Helper()
	p := make([]byte, n)
	for i := 0; i < n; i++ {
		if i>>18%3 != 0 {
			p[i] = byte(i*7 ^ i>>11)
		}
	}
	name := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Copies there and back are equal, by both families of tools, over several connections.
func TestCopiesThereAndBackAreEqual(t *testing.T) {
	const n = 24 << 20
	from := randomFile(t, n)
	for name, c := range map[string][2][]string{
		"nbdcopy":  {{"nbdcopy", "--connections=4", "FILE", "URI"}, {"nbdcopy", "--connections=4", "URI", "FILE"}},
		"qemu-img": {{"qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", "FILE", "URI"}, {"qemu-img", "convert", "-f", "raw", "-O", "raw", "URI", "FILE"}},
	} {
		t.Run(name, func(t *testing.T) {
			needTool(t, name, "cmp")
			realServers(t, n, func(t *testing.T, tcp, unix string) {
				back := filepath.Join(t.TempDir(), "back")
				do := func(args []string, file, uri string) {
					r := strings.NewReplacer("FILE", file, "URI", uri)
					var done []string
					for _, a := range args {
						done = append(done, r.Replace(a))
					}
					run(t, done[0], done[1:]...)
				}
				do(c[0], from, tcp)
				do(c[1], back, unix)
				run(t, "cmp", from, back)
			})
		})
	}
}

// qemu's block layer reads back the patterns that it wrote, and its errors are errors.
func TestQemuIOPatterns(t *testing.T) {
	needTool(t, "qemu-io")
	realServers(t, 16<<20, func(t *testing.T, tcp, _ string) {
		out := run(t, "qemu-io", "-f", "raw", "-c", "write -P 17 0 1M", "-c", "write -P 18 -f 1M 512", "-c", "write -z 4k 8k",
			"-c", "read -P 17 0 4k", "-c", "read -P 0 4k 8k", "-c", "read -P 17 12k 1012k", "-c", "read -P 18 1M 512",
			"-c", "aio_write -P 19 2M 4M", "-c", "aio_write -P 20 8M 4M", "-c", "aio_flush", "-c", "read -P 19 2M 4M", "-c", "read -P 20 8M 4M",
			"-c", "discard 8M 4M", "-c", "flush", tcp)
		if strings.Contains(out, "failed") || strings.Contains(out, "error") {
			t.Fatal(out)
		}
	})
}

// fio checks each block that it reads for what it wrote last.
func TestFioVerify(t *testing.T) {
	needTool(t, "fio")
	realServers(t, 16<<20, func(t *testing.T, tcp, _ string) {
		run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+tcp, "--rw=randrw", "--bsrange=512-128k", "--size=16m", "--iodepth=64",
			"--verify=crc32c", "--verify_backlog=128", "--verify_fatal=1", "--randrepeat=0")
	})
}
