package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/tools/e2e/cluster"
)

// randomFile makes a file of n random bytes with a hole in the middle.
func randomFile(t *testing.T, n int) string {
	t.Helper()
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b) // never fails
	clear(b[n/3 : n/2])
	name := filepath.Join(t.TempDir(), "random")
	must(t, os.WriteFile(name, b, 0o644))
	return name
}

// The tools that people have for NBD work through the gateway, and what they copy in comes out the same, after a
// failover too.
func TestNBDToolsWorkThroughTheGateway(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "nbdsh", "qemu-img", "qemu-io")
	const size = 64 << 20
	c := start(t, cluster.Options{Size: "64M"})
	in := randomFile(t, size)
	out := filepath.Join(t.TempDir(), "out")
	server := strings.TrimSuffix(c.URI, c.Volume())

	t.Run("nbdinfo", func(t *testing.T) {
		info := command(t, "nbdinfo", "--json", c.URI)
		for _, want := range []string{`"export-size": 67108864`, `"can_flush": true`, `"can_fua": true`,
			`"can_multi_conn": true`, `"can_trim": true`, `"can_zero": true`, `"is_read_only": false`} {
			if !strings.Contains(info, want) {
				t.Errorf("nbdinfo does not say %s:\n%s", want, info)
			}
		}
		if list := command(t, "nbdinfo", "--list", server); !strings.Contains(list, c.Volume()) {
			t.Errorf("the list lacks %s:\n%s", c.Volume(), list)
		}
	})
	t.Run("nbdcopy in and out", func(t *testing.T) {
		command(t, "nbdcopy", "--flush", in, c.URI)
		command(t, "nbdcopy", c.URI, out)
		sameFile(t, in, out)
	})
	t.Run("holes", func(t *testing.T) {
		command(t, "nbdsh", "-u", c.URI, "-c", "h.zero(64 << 20, 0); h.pwrite(b'x' * (1 << 20), 16 << 20); h.flush()")
		want := fmt.Sprintln(0, 16<<20, 3, "hole,zero", 16<<20, 1<<20, 0, "data", 17<<20, 47<<20, 3, "hole,zero")
		if got := command(t, "nbdinfo", "--map", c.URI); strings.Join(strings.Fields(got), " ")+"\n" != want {
			t.Errorf("nbdinfo shows\n%swant\n%s", got, want)
		}
		command(t, "nbdcopy", "--flush", in, c.URI)
	})
	t.Run("qemu-img compare and convert", func(t *testing.T) {
		command(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, c.URI)
		must(t, os.Remove(out))
		command(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", c.URI, out)
		sameFile(t, in, out)
		command(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", in, c.URI)
	})
	t.Run("after a failover", func(t *testing.T) {
		victim := c.Node(ask(t, c.Primary))
		victim.Kill()
		command(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, c.URI)
		must(t, victim.Start())
		must(t, c.AwaitSafe(t.Context()))
	})
	t.Run("nbdsh", func(t *testing.T) {
		command(t, "nbdsh", "-u", c.URI, "-c", nbdScript)
	})
	t.Run("qemu-io", func(t *testing.T) {
		command(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 12345 54321", "-c", "flush",
			"-c", "read -P 0x5a 12345 54321", "-c", "write -z 16k 8k", "-c", "read -P 0 16k 8k",
			"-c", "discard 32k 4k", "-c", "read -P 0x5a 36k 4k", c.URI)
	})
	sameImages(t, c)
}

// nbdScript tries every command by itself, with odd sizes, and what has to be refused.
const nbdScript = `
import errno
a = bytes(range(256)) * 64
h.pwrite(a, 1000)
assert h.pread(len(a), 1000) == a
h.pwrite(b'x' * 5, 4094, nbd.CMD_FLAG_FUA)
assert h.pread(7, 4093) == a[3093:3094] + b'xxxxx' + a[3099:3100]
h.flush()
h.zero(100, 8191)
assert h.pread(102, 8190) == b'%c' % a[7190] + bytes(100) + b'%c' % a[7291]
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(4096, 8192) == bytes(4096)
h.trim(8192, 4096)
assert h.pread(8192, 4096) == bytes(8192)
if h.can_cache():
    h.cache(4096, 0)
big = b'big!' * (8 << 20)
h.pwrite(big, 4096)
assert h.pread(len(big), 4096) == big
size = h.get_size()
h.set_strict_mode(0)
def refused(want, f):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == want, (e.errnum, want)
    else:
        raise AssertionError('was not refused')
refused(errno.EINVAL, lambda: h.pread(4096, size - 1))
refused(errno.ENOSPC, lambda: h.pwrite(a, size - 1))
refused(errno.EINVAL, lambda: h.pread(1, 1 << 63))
refused(errno.EINVAL, lambda: h.trim(4096, size))
assert h.pread(4, size - 4) is not None
`
