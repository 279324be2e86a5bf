package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// exitUsage is the exit code for a command line that makes no sense.
const exitUsage = 64

// P8: a wrong command line is refused in one line that names what is wrong, before anything is done.
func TestWrongCommandLineIsRefusedInOneLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o644))
	ports, err := cluster.FreePorts(3)
	must(t, err)
	free, view, other := ports[0], ports[1], ports[2]
	data := filepath.Join(t.TempDir(), "data")
	node := func(more ...string) []string {
		return append([]string{"node", "--view", view}, more...)
	}
	create := func(name string, more ...string) []string {
		return append([]string{"volume", "create", name, "--view", view}, more...)
	}

	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no such command", []string{"serve"}, exitUsage, "serve"},
		{"no such flag", []string{"status", "--frobnicate"}, exitUsage, "frobnicate"},
		{"too many arguments", []string{"volume", "show", "a", "b", "--view", view}, exitUsage, ""},
		{"no name", []string{"volume", "create", "--size", "1G", "--view", view}, exitUsage, "NAME"},
		{"no size", create("v"), exitUsage, "--size"},
		{"size 0", create("v", "--size", "0"), exitUsage, "size"},
		{"negative size", create("v", "--size=-4096"), exitUsage, "size"},
		{"size that is no multiple of a block", create("v", "--size", "5000"), exitUsage, "4096"},
		{"decimal unit", create("v", "--size", "1GB"), exitUsage, "GB"},
		{"no number", create("v", "--size", "large"), exitUsage, "large"},
		{"size that overflows", create("v", "--size", "99999999P"), exitUsage, "99999999P"},
		{"name with a slash", create("a/b", "--size", "1G"), exitUsage, "a/b"},
		{"name that climbs", create("..", "--size", "1G"), exitUsage, ".."},
		{"empty name", create("", "--size", "1G"), exitUsage, "name"},
		{"endless name", create(strings.Repeat("x", 5000), "--size", "1G"), exitUsage, "name"},
		{"name with a newline", create("a\nb", "--size", "1G"), exitUsage, "name"},
		{"no copies", create("v", "--size", "1G", "--copies", "0"), exitUsage, "copies"},
		{"too many copies", create("v", "--size", "1G", "--copies", "1000"), exitUsage, "copies"},
		{"more minimum than copies", create("v", "--size", "1G", "--copies", "2", "--min-copies", "3"), exitUsage, "min-copies"},
		{"no such sync mode", create("v", "--size", "1G", "--sync", "sometimes"), exitUsage, "sometimes"},
		{"view server that is no address", []string{"volume", "list", "--view", "nowhere"}, exitUsage, "nowhere"},
		{"view server that does not answer", []string{"status", "--view", view}, 3, view},
		{"node without an id", node("--data", data, "--listen", free, "--nbd", other), exitUsage, "--id"},
		{"node without a directory", node("--id", "n1", "--listen", free, "--nbd", other), exitUsage, "--data"},
		{"node without a view server", []string{"node", "--id", "n1", "--data", data, "--listen", free, "--nbd", other}, exitUsage, "--view"},
		{"node with a bad id", node("--id", "n/1", "--data", data, "--listen", free, "--nbd", other), exitUsage, "n/1"},
		{"node with a bad port", node("--id", "n1", "--data", data, "--listen", "127.0.0.1:99999", "--nbd", other), exitUsage, "99999"},
		{"node with a log that is too small", node("--id", "n1", "--data", data, "--listen", free, "--nbd", other, "--log-size", "4K"), exitUsage, "log-size"},
		{"node with a taken port", node("--id", "n1", "--data", data, "--listen", free, "--nbd", l.Addr().String()), 1, "in use"},
		{"node in a file", node("--id", "n1", "--data", file, "--listen", free, "--nbd", other), 1, file},
		{"node below a file", node("--id", "n1", "--data", filepath.Join(file, "data"), "--listen", free, "--nbd", other), 1, file},
		{"view server in a file", []string{"viewd", "--id", "v1", "--data", file, "--listen", free}, 1, file},
		{"view server with a taken port", []string{"viewd", "--id", "v1", "--data", filepath.Join(data, "v"), "--listen", l.Addr().String()}, 1, "in use"},
		{"gateway without an address", []string{"gateway", "--view", view, "--listen", "somewhere"}, exitUsage, "somewhere"},
		{"gateway with a taken port", []string{"gateway", "--view", view, "--listen", l.Addr().String()}, 1, "in use"},
		{"dev with no nodes", []string{"dev", "--nodes", "0", "--dir", data}, exitUsage, "nodes"},
		{"dev in a file", []string{"dev", "--dir", file, "--listen", free}, 1, file},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r, err := cluster.Command(t.Context(), program, tc.args...)
			must(t, err)
			if r.Code != tc.code {
				t.Errorf("exit code %d, want %d", r.Code, tc.code)
			}
			complains(t, r, tc.says)
			if r.Stdout != "" {
				t.Errorf("standard output is %q, want nothing", r.Stdout)
			}
		})
	}
}

// complains checks that there is exactly one line of complaint among the log lines of a role, the last one.
func complains(t *testing.T, r cluster.Result, part string) {
	t.Helper()
	lines := strings.Split(r.Line(), "\n")
	n := 0
	for _, line := range lines {
		if strings.HasPrefix(line, "lockstep: ") {
			n++
		}
	}
	last := lines[len(lines)-1]
	if n != 1 || !strings.HasPrefix(last, "lockstep: ") || !strings.Contains(last, part) {
		t.Errorf("standard error is\n%s\nwant one line that begins with \"lockstep: \", at the end, and mentions %q", r.Line(), part)
	}
	if strings.Contains(r.Stderr, "goroutine ") {
		t.Errorf("it panicked: %s", r.Stderr)
	}
}

// P8: a node refuses a data directory that is not its own, from the future, or in use, and calls a replica that is damaged or
// from the future unusable, in one line that names the file; the directory stays as it is, and the rest of the cluster serves
// on.
func TestNodeRefusesADirectoryThatIsNotRight(t *testing.T) {
	need(t, "cp")
	c := start(t, cluster.Options{Size: "64M"})
	withDisk(t, c.URI, func(d *stamped.NBD) { must(t, d.WriteAt([]byte("precious"), 0, true)) })
	nobody, err := cluster.FreePorts(3)
	must(t, err)
	node := func(dir, id, view string) cluster.Result {
		t.Helper()
		r, err := cluster.Command(t.Context(), program, "node", "--id", id, "--data", dir,
			"--listen", nobody[0], "--nbd", nobody[1], "--view", view)
		must(t, err)
		return r
	}
	broken := func(t *testing.T, r cluster.Result, says string) {
		t.Helper()
		if r.Code != 1 {
			t.Errorf("exit code %d, want 1", r.Code)
		}
		complains(t, r, says)
	}

	unusable := func(t *testing.T, dir, says string) {
		t.Helper()
		p := cluster.NewProcess("node", program, t.TempDir(), "node", "--id", "n1", "--data", dir,
			"--listen", nobody[0], "--nbd", nobody[1], "--view", nobody[2])
		must(t, p.Start())
		defer p.Kill()
		must(t, cluster.Await(t.Context(), time.Minute, "word of the replica", func() error {
			for line := range strings.Lines(p.LogTail(1 << 16)) {
				var event struct{ Message, Error string }
				if json.Unmarshal([]byte(line), &event) == nil && event.Message == "unusable" && strings.Contains(event.Error, says) {
					return nil
				}
			}
			return errors.New(p.LogTail(1 << 16))
		}))
	}

	t.Run("in use", func(t *testing.T) { broken(t, node(c.DataDir("n1"), "n1", c.View), "in use") })
	must(t, c.StopAll())
	images, err := c.Images()
	must(t, err)
	replica, err := filepath.Rel(c.DataDir("n1"), filepath.Dir(images["n1"]))
	must(t, err)

	tests := []struct {
		name string
		file string // below the data directory
		harm func(t *testing.T, name string)
		says string
	}{
		{"short meta", filepath.Join(replica, "meta"), truncate(100), "meta"},
		{"no meta", filepath.Join(replica, "meta"), remove, replica},
		{"rotten meta", filepath.Join(replica, "meta"), edit(func(b []byte) {
			for i := range b {
				b[i] ^= 0x55
			}
		}), "meta"},
		{"meta of a newer version", filepath.Join(replica, "meta"), edit(func(b []byte) {
			for slot := b; len(slot) > 0; slot = slot[blockSize:] {
				// The version is at byte 8, the checksum at byte 12 of a slot (package blockdev).
				binary.LittleEndian.PutUint32(slot[8:], 2)
				binary.LittleEndian.PutUint32(slot[12:], 0)
				sum := crc32.Checksum(slot[:blockSize], crc32.MakeTable(crc32.Castagnoli))
				binary.LittleEndian.PutUint32(slot[12:], sum)
			}
		}), "version 2"},
		{"short image", filepath.Join(replica, "data.img"), truncate(1 << 20), "data.img"},
		{"no image", filepath.Join(replica, "data.img"), remove, "data.img"},
		{"no checksums", filepath.Join(replica, "data.crc"), remove, "data.crc"},
		{"short regions", filepath.Join(replica, "regions"), truncate(8), "regions"},
		{"no log", filepath.Join(replica, "wal"), remove, "wal"},
		{"rotten node.json", "node.json", truncate(3), "node.json"},
		{"no node.json", "node.json", remove, "node.json"},
		{"node.json of a newer version", "node.json", rewrite(`"format":1`, `"format":2`), "version 2"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := copyTree(t, c.DataDir("n1"))
			tc.harm(t, filepath.Join(dir, tc.file))
			if filepath.Base(tc.file) == "node.json" {
				broken(t, node(dir, "n1", nobody[2]), tc.says)
			} else {
				unusable(t, dir, tc.says)
			}
		})
	}
	t.Run("another node's", func(t *testing.T) {
		broken(t, node(copyTree(t, c.DataDir("n1")), "n2", nobody[2]), "n1")
	})
	t.Run("another cluster's", func(t *testing.T) {
		other := start(t, cluster.Options{Nodes: 1, Size: "64M"})
		broken(t, node(copyTree(t, c.DataDir("n1")), "n1", other.View), "cluster")
	})

	// A slot of meta that rots is no harm: there are two.
	edit(func(b []byte) { clear(b[:blockSize]) })(t, filepath.Join(c.DataDir("n1"), replica, "meta"))
	edit(func(b []byte) { clear(b[blockSize:]) })(t, filepath.Join(filepath.Dir(images["n2"]), "meta"))
	must(t, c.StartAll())
	must(t, c.AwaitSafe(t.Context()))
	withDisk(t, c.URI, func(d *stamped.NBD) {
		b := make([]byte, 8)
		must(t, d.ReadAt(b, 0))
		if string(b) != "precious" {
			t.Errorf("read %q", b)
		}
	})
}

// copyTree copies a directory, holes as holes.
func copyTree(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	command(t, "cp", "--archive", "--sparse=always", dir, to)
	return to
}

func truncate(n int64) func(*testing.T, string) {
	return func(t *testing.T, name string) { must(t, os.Truncate(name, n)) }
}

func remove(t *testing.T, name string) { must(t, os.RemoveAll(name)) }

// edit changes a small file's bytes.
func edit(f func([]byte)) func(*testing.T, string) {
	return func(t *testing.T, name string) {
		b, err := os.ReadFile(name)
		must(t, err)
		f(b)
		must(t, os.WriteFile(name, b, 0o644))
	}
}

// rewrite replaces a part of a text file, which must be there.
func rewrite(old, new string) func(*testing.T, string) {
	return func(t *testing.T, name string) {
		b, err := os.ReadFile(name)
		must(t, err)
		if !strings.Contains(string(b), old) {
			t.Fatalf("%s has no %s: %s", name, old, b)
		}
		must(t, os.WriteFile(name, []byte(strings.Replace(string(b), old, new, 1)), 0o644))
	}
}
