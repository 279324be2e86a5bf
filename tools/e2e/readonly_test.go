package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

// Beside the gateway of those who write, one for those who only read: at a unix socket that a group may use, it shows what
// the others have written, and refuses to change it.
func TestGatewayForReaders(t *testing.T) {
	need(t, "nbdsh", "nbdinfo")
	c := start(t, cluster.Options{Size: "16M"})
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	readers := cluster.NewProcess("readers", program, dir, "gateway", "--view", c.View, "--listen", "unix:"+socket,
		"--socket-mode", "0660", "--read-only-volume", c.Volume(), "--max-clients-per-volume", "2")
	must(t, readers.Start())
	t.Cleanup(readers.Kill)
	must(t, cluster.Await(t.Context(), 10*time.Second, "the second gateway listens", func() error {
		_, err := os.Stat(socket)
		return err
	}))
	if info, err := os.Stat(socket); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	command(t, "nbdsh", "-u", c.URI, "-c", "h.pwrite(b'written by others', 4096)")
	command(t, "nbdsh", "-u", "nbd+unix:///"+c.Volume()+"?socket="+socket, "-c", `
assert h.is_read_only() and not h.can_zero()
assert h.pread(17, 4096) == b"written by others"
h.set_strict_mode(0)
try: h.pwrite(b"x", 0)
except nbd.Error as e: assert e.errno == "EPERM", e
else: raise AssertionError("it was allowed")
others = nbd.NBD(), nbd.NBD()
others[0].connect_uri(h.get_uri())
try: others[1].connect_uri(h.get_uri())
except nbd.Error: pass
else: raise AssertionError("three clients where two are allowed")
`)
}
