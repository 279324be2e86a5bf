package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/tools/testcerts"
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
// a URI over TCP and one over a Unix socket.
func realServers(t *testing.T, n int, test func(t *testing.T, tcp, unix string)) {
	t.Run("lockstep", func(t *testing.T) {
		x := exports{{Name: "disk", Device: newSparse(uint64(n)), FastZero: true}}
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
		startServer(t, path, "nbdkit", "--foreground", "--exit-with-parent", "--unix", path, "memory", fmt.Sprint(n))
		uri := "nbd+unix:///disk?socket=" + path
		test(t, uri, uri)
	})
}

// olderServers are realServers, and nbd-server, which has no structured replies.
func olderServers(t *testing.T, n int, test func(t *testing.T, tcp, unix string)) {
	realServers(t, n, test)
	t.Run("nbd-server", func(t *testing.T) {
		uri := "nbd+unix:///disk?socket=" + strings.TrimPrefix(startNBDServer(t, int64(n)), "unix:")
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
h.add_meta_context("base:allocation")
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
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)

assert h.can_meta_context("base:allocation") and h.can_df()
h.zero(size, 0)
h.pwrite(b"x" * 65536, 1 << 20)
def extents(count, offset, flags=0):
    got = []
    h.block_status(count, offset, lambda context, at, entries, err: got.append((context, at, entries)) or 0, flags)
    assert [g[0] for g in got] == ["base:allocation"] and got[0][1] == offset, got
    return got[0][2]
assert extents(4 << 20, 0)[:4] == [1 << 20, 3, 65536, 0]
assert extents(4 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == [1 << 20, 3]

chunks = []
def take(data, at, status, err):
    chunks.append((at, len(data), status))
    return 0
want = bytes(4096) + b"x" * 12288
assert h.pread_structured(16384, (1 << 20) - 4096, take) == want
assert sum(c[1] for c in chunks) == 16384
chunks.clear()
assert h.pread_structured(16384, (1 << 20) - 4096, take, nbd.CMD_FLAG_DF) == want
assert len(chunks) == 1
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
fails("EINVAL", h.cache, 2, size - 1)
fails("EINVAL", h.block_status, 2, size - 1, lambda *args: 0)
for call in (lambda f: h.pread(512, 0, f), lambda f: h.pwrite(b"x" * 512, 0, f), lambda f: h.flush(f), lambda f: h.trim(512, 0, f),
        lambda f: h.zero(512, 0, f), lambda f: h.cache(512, 0, f), lambda f: h.block_status(512, 0, lambda *args: 0, f)):
    fails("EINVAL", call, 1 << 13)
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
	olderServers(t, 1<<20, func(t *testing.T, tcp, _ string) {
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

// nbdinfo shows holes and data, and all that an export can do.
func TestNbdinfoShowsAnExport(t *testing.T) {
	needTool(t, "nbdinfo", "nbdcopy")
	realServers(t, 8<<20, func(t *testing.T, tcp, _ string) {
		libnbd(t, tcp, "h.connect_uri(uri); h.pwrite(b'x' * 65536, 1 << 20); h.shutdown()")
		if got, want := strings.Fields(run(t, "nbdinfo", "--map", tcp)),
			strings.Fields(fmt.Sprintln(0, 1<<20, 3, "hole,zero", 1<<20, 65536, 0, "data", 1<<20+65536, 7<<20-65536, 3, "hole,zero")); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		var info struct {
			Exports []map[string]any
		}
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", tcp)), &info); err != nil || len(info.Exports) != 1 {
			t.Fatal(err, info)
		}
		want := map[string]any{"export-size": 8388608.0, "is_read_only": false}
		for _, can := range []string{"cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"} {
			want["can_"+can] = true
		}
		for name, v := range want {
			if info.Exports[0][name] != v {
				t.Errorf("%s is %v", name, info.Exports[0][name])
			}
		}
	})
}

// A read-only export is shown as such, offers nothing that changes it, and refuses it with EPERM; copying from it works.
func TestReadOnlyExportWithRealClients(t *testing.T) {
	needTool(t, "nbdinfo", "nbdcopy", "qemu-img")
	dev := newSparse(1 << 20)
	dev.do(&blockdev.Request{Op: blockdev.OpWrite, Offset: 4096, Length: 4, Data: []byte("data")})
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "disk", Device: dev, ReadOnly: true}}})
	uri := "nbd://" + addr + "/disk"
	libnbd(t, uri, `
h.connect_uri(uri)
assert h.is_read_only() and not h.can_trim() and not h.can_zero()
assert h.pread(4, 4096) == b"data"
h.flush()
h.set_strict_mode(0)
for call in (lambda: h.pwrite(b"x", 0), lambda: h.trim(4096, 0), lambda: h.zero(4096, 0), lambda: h.pwrite(b"x" * 100, 1 << 20)):
    try: call()
    except nbd.Error as e: assert e.errno == "EPERM", e
    else: raise AssertionError("it was allowed")
assert h.pread(4, 4096) == b"data"
h.shutdown()`)
	back := filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", uri, back)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", back, uri)
}

// qemu-img sees the same map as the server, converts without writing holes, and compares.
func TestQemuImgKnowsHoles(t *testing.T) {
	needTool(t, "qemu-img")
	const n = 24 << 20
	from := randomFile(t, n)
	realServers(t, n, func(t *testing.T, tcp, _ string) {
		run(t, "qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", from, tcp)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", from, tcp)
		var parts []struct {
			Start, Length uint64
			Zero, Data    bool
		}
		if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", tcp)), &parts); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		holes := uint64(0)
		for _, p := range parts {
			if p.Zero {
				holes += p.Length
			}
			if whole := content[p.Start : p.Start+p.Length]; p.Zero && bytes.Count(whole, []byte{0}) != len(whole) {
				t.Errorf("%+v is no hole", p)
			}
		}
		if want := uint64(n / 3); holes < want {
			t.Errorf("%d bytes of holes, want %d", holes, want)
		}
	})
}

// Real clients encrypt to this server, with and without being known to it, and this client to a real server.
func TestTLSWithRealClientsAndServers(t *testing.T) {
	needTool(t, "nbdinfo", "nbdcopy", "qemu-img", "nbdkit")
	dir, stranger := testcerts.New(t).Write(t.TempDir(), "server", "client"), testcerts.New(t).Write(t.TempDir(), "client")
	from, back := randomFile(t, 8<<20), filepath.Join(t.TempDir(), "back")
	_, addr := serve(t, nbd.ServerOptions{
		Exporter: exports{{Name: "disk", Device: newSparse(8 << 20)}}, TLS: nbd.TLSOptions{Mode: nbd.TLSRequire, Dir: dir, VerifyPeer: true},
	})
	uri := "nbds://" + addr + "/disk?tls-certificates="
	if info := run(t, "nbdinfo", uri+dir); !strings.Contains(info, "with TLS") {
		t.Error(info)
	}
	run(t, "nbdcopy", from, uri+dir)
	run(t, "nbdcopy", uri+dir, back)
	run(t, "cmp", from, back)
	host, port, _ := strings.Cut(addr, ":")
	run(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir, "--image-opts",
		"driver=raw,file.driver=file,file.filename="+from, "driver=raw,file.driver=nbd,file.host="+host+",file.port="+port+",file.export=disk,file.tls-creds=t")
	for _, refused := range []string{uri + stranger, "nbd://" + addr + "/disk"} {
		if err := exec.Command("nbdinfo", refused).Run(); err == nil {
			t.Errorf("%s was let in", refused)
		}
	}

	path := filepath.Join(t.TempDir(), "s")
	startServer(t, path, "nbdkit", "--foreground", "--exit-with-parent", "--unix", path, "--tls=require", "--tls-certificates="+dir, "--tls-verify-peer", "memory", "8M")
	d, err := nbd.OpenDisk(t.Context(), "unix:"+path, nbd.ClientOptions{Export: "disk", TLS: clientTLS(t, nbd.TLSRequire, dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want, got := bytes.Repeat([]byte("data"), 1<<18), make([]byte, 3<<20)
	if _, err := d.WriteAt(want, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got[1<<20:2<<20], want) {
		t.Error("nbdkit gives something else back", err)
	}
	if list, err := d.Extents(0, 8<<20); err != nil || len(list) != 3 {
		t.Error(list, err)
	}
	if _, err := nbd.OpenDisk(t.Context(), "unix:"+path, nbd.ClientOptions{Export: "disk", TLS: clientTLS(t, nbd.TLSRequire, stranger)}); err == nil {
		t.Error("nbdkit has a certificate that the client does not trust, and was trusted")
	}
}

// This client gets along with other people's servers, whatever they know.
func TestClientWithRealServers(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) string{"nbdkit": startNbdkit, "nbd-server": func(t *testing.T) string { return startNBDServer(t, diskSize) }, "qemu-nbd": func(t *testing.T) string {
		needTool(t, "qemu-nbd")
		path := filepath.Join(t.TempDir(), "s")
		startServer(t, path, "qemu-nbd", "--persistent", "--shared=0", "--export-name=disk", "--format=raw", "--discard=unmap", "--socket="+path, emptyDisk(t, diskSize))
		return "unix:" + path
	}} {
		t.Run(name, func(t *testing.T) {
			d := openDisk(t, start(t), "disk")
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					want, got := bytes.Repeat([]byte{byte(i + 1)}, 2<<20), make([]byte, 4<<20)
					if _, err := d.WriteAt(want, int64(i)*4<<20); err != nil {
						t.Error(err)
					}
					if _, err := d.ReadAt(got, int64(i)*4<<20); err != nil || !bytes.Equal(got[:2<<20], want) || bytes.ContainsAny(got[2<<20:], string([]byte{byte(i + 1)})) {
						t.Error("part", i, "reads otherwise:", err)
					}
				})
			}
			wg.Wait()
			if err := d.Flush(); err != nil {
				t.Error(err)
			}
			if err := d.WriteZeroes(1<<20, 1<<20, blockdev.FlagFUA); err != nil {
				t.Error(err)
			}
			if !d.Info().Extents {
				return
			}
			if list, err := d.Extents(0, 8<<20); err != nil || len(list) < 4 || list[0] != (blockdev.Extent{Length: 1 << 20}) || list[1].State != 3 {
				t.Error(list, err)
			}
		})
	}
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
			olderServers(t, n, func(t *testing.T, tcp, unix string) {
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
	olderServers(t, 16<<20, func(t *testing.T, tcp, _ string) {
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
	olderServers(t, 16<<20, func(t *testing.T, tcp, _ string) {
		run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+tcp, "--rw=randrw", "--bsrange=512-128k", "--size=16m", "--iodepth=64",
			"--verify=crc32c", "--verify_backlog=128", "--verify_fatal=1", "--randrepeat=0")
	})
}
