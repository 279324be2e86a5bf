package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

// mounted is an ext4 file system on the volume: nbdfuse makes a file of the export, losetup a block device of the
// file. It needs no NBD driver in the kernel.
type mounted struct {
	t          *testing.T
	fuse, loop string // where nbdfuse is mounted, the block device
	dir        string // where ext4 is mounted, or ""
}

// serving is longer than any test uses a file system, beside the time that a soak goes on.
const serving = 15 * time.Minute

// attach makes a block device of an export, from a byte on. Whatever is left of it goes with the test.
func attach(t *testing.T, uri string, from int64) *mounted {
	t.Helper()
	need(t, "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "mount", "umount")
	if os.Getuid() != 0 {
		missing(t, "mounting needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			missing(t, "there is no "+dev)
		}
	}
	m := &mounted{t: t, fuse: t.TempDir()}
	file := filepath.Join(m.fuse, "disk")
	job := beginFor(t, *soak+serving, "nbdfuse", file, uri)
	t.Cleanup(m.detach) // before job's: nbdfuse ends by itself when it is unmounted
	must(t, cluster.Await(t.Context(), serveLimit, "nbdfuse", func() error {
		if !job.running() {
			t.Fatalf("nbdfuse: %s", job.wait())
		}
		_, err := os.Stat(file)
		return err
	}))
	m.loop = strings.TrimSpace(command(t, "losetup", "--find", "--show", "--offset", fmt.Sprint(from), file))
	return m
}

// mount mounts the file system, umount unmounts it.
func (m *mounted) mount() {
	m.t.Helper()
	dir := m.t.TempDir()
	command(m.t, "mount", "-t", "ext4", "-o", "errors=remount-ro", m.loop, dir)
	m.dir = dir
}

func (m *mounted) umount() {
	m.t.Helper()
	command(m.t, "umount", m.dir)
	m.dir = ""
}

// detach takes everything apart, also after a failure.
func (m *mounted) detach() {
	if m.dir != "" {
		if err := syscall.Unmount(m.dir, syscall.MNT_DETACH); err != nil {
			m.t.Errorf("unmount %s: %v", m.dir, err)
		}
		m.dir = ""
	}
	if m.loop != "" {
		if out, err := exec.Command("losetup", "--detach", m.loop).CombinedOutput(); err != nil {
			m.t.Errorf("losetup --detach %s: %v: %s", m.loop, err, out)
		}
		m.loop = ""
	}
	if m.fuse != "" {
		if err := syscall.Unmount(m.fuse, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			m.t.Errorf("unmount %s: %v", m.fuse, err)
		}
		m.fuse = ""
	}
}

// tree is files with known content.
type tree struct {
	dir string

	// mu guards everything below.
	mu      sync.Mutex
	files   map[string][sha256.Size]byte // those whose fsync has returned
	written int                          // and how many that were
}

// keptFiles is how many files a writer leaves: the file system is not to become full.
const keptFiles = 800

// grow writes files, each with its fsync and that of its directory, until done is closed.
func (f *tree) grow(rng *rand.Rand, name string, done <-chan struct{}) error {
	file := func(i int) string { return filepath.Join(fmt.Sprintf("%s-%d", name, i%7), fmt.Sprint(i)) }
	for i := 0; ; i++ {
		select {
		case <-done:
			return nil
		default:
		}
		if i >= keptFiles {
			old := file(i - keptFiles)
			f.mu.Lock()
			delete(f.files, old)
			f.mu.Unlock()
			if err := os.Remove(filepath.Join(f.dir, old)); err != nil {
				return err
			}
		}
		rel := file(i)
		data := make([]byte, 1+rng.IntN(40_000))
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		if err := writeSynced(filepath.Join(f.dir, rel), data); err != nil {
			return err
		}
		f.mu.Lock()
		f.files[rel], f.written = sha256.Sum256(data), f.written+1
		f.mu.Unlock()
	}
}

func (f *tree) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.written
}

// writeSynced makes a file and everything that leads to it stable.
func writeSynced(name string, data []byte) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	w, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		w.Close()
		return err
	}
	if err := errors.Join(w.Sync(), w.Close()); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// check reads every file back.
func (f *tree) check(t *testing.T, dir string) {
	t.Helper()
	for rel, want := range f.files {
		b, err := os.ReadFile(filepath.Join(dir, rel))
		if err != nil || sha256.Sum256(b) != want {
			t.Errorf("%s: fsynced and not there any more (%d bytes, %v)", rel, len(b), err)
		}
	}
	n := 0
	must(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	}))
	t.Logf("%d files were fsynced, %d are there", len(f.files), n)
}

// fsArea is where a file system begins on a volume that other checkers use too.
const fsArea = 128 << 20

// fileSystem is an ext4 on a volume and those who write files on it.
type fileSystem struct {
	t       *testing.T
	m       *mounted
	f       *tree
	end     func() // ends the writers and waits for them
	writers chan error
}

// startFiles makes a file system on a volume, from a byte on, and begins to write files.
func startFiles(t *testing.T, uri string, from int64) *fileSystem {
	t.Helper()
	m := attach(t, uri, from)
	command(t, "mkfs.ext4", "-q", m.loop)
	m.mount()
	s, done := seed(t), make(chan struct{})
	fs := &fileSystem{t: t, m: m, f: &tree{dir: m.dir, files: make(map[string][sha256.Size]byte)}, writers: make(chan error, 3)}
	var all sync.WaitGroup
	for i := range cap(fs.writers) {
		rng := rand.New(rand.NewPCG(s, uint64(i)))
		all.Go(func() { fs.writers <- fs.f.grow(rng, fmt.Sprint("dir", i), done) })
	}
	fs.end = sync.OnceFunc(func() { close(done); all.Wait() })
	t.Cleanup(fs.end) // before the file system is taken apart
	return fs
}

// goesOn waits until n more files were fsynced.
func (fs *fileSystem) goesOn(n int) {
	fs.t.Helper()
	n += fs.f.size()
	must(fs.t, cluster.Await(fs.t.Context(), serveLimit, "more files", func() error {
		select {
		case err := <-fs.writers:
			fs.t.Fatalf("a writer of files ended: %v", err)
		default:
		}
		if have := fs.f.size(); have < n {
			return fmt.Errorf("%d, want %d", have, n)
		}
		return nil
	}))
}

// check ends the writers, who must have met no error, looks whether the file system is clean and every file there that
// was fsynced, and takes it apart.
func (fs *fileSystem) check() {
	fs.t.Helper()
	fs.end()
	close(fs.writers)
	for err := range fs.writers {
		must(fs.t, err)
	}
	m := fs.m
	m.umount()
	command(fs.t, "e2fsck", "-fn", m.loop)
	m.mount()
	fs.f.check(fs.t, m.dir)
	m.umount()
	if out := command(fs.t, "dumpe2fs", "-h", m.loop); !bytes.Contains([]byte(out), []byte("Filesystem state:         clean")) {
		fs.t.Errorf("the file system is not clean:\n%s", out)
	}
	m.detach()
}

// A file system on the volume notices nothing of a failover but a pause: no error, no file lost, clean in the end.
func TestExt4SurvivesFailover(t *testing.T) {
	c := start(t, cluster.Options{Size: "192M"})
	fs := startFiles(t, c.URI, 0)
	for range times(2, 6) {
		fs.goesOn(50)
		victim := c.Node(ask(t, c.Primary))
		victim.Kill()
		fs.goesOn(50)
		must(t, victim.Start())
		must(t, c.AwaitSafe(t.Context()))
	}
	fs.check()
	sameImages(t, c)
}
