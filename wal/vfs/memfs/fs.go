package memfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"lockstep/wal/vfs"
)

// ErrStopped is what every operation gives after the moment chosen by StopAt.
var ErrStopped = errors.New("memfs: the machine has stopped")

// FS implements vfs.FS. Its methods may be called from many goroutines at once.
type FS struct {
	mu sync.Mutex // guards everything below, the nodes too

	root    *node
	names   []*change // un-synced changes of directories, oldest first
	locked  map[string]bool
	ops     int // counted so far; the number of the next one
	seq     int
	stopAt  int // -1: never
	failAt  int // -1: never
	failErr error
	onRead  func(name string, off int64, n int) error
	before  func(Op)
	inject  func(Op) Effect
}

var _ vfs.FS = (*FS)(nil)

// node is a file or a directory.
type node struct {
	dir      bool
	children map[string]*node // as seen
	stable   map[string]*node // as on disk

	now, disk content   // of a file, likewise
	pending   []*change // un-synced, oldest first
}

func newDir() *node {
	return &node{dir: true, children: map[string]*node{}, stable: map[string]*node{}}
}

// New makes an empty file system.
func New() *FS {
	return &FS{root: newDir(), locked: map[string]bool{}, stopAt: -1, failAt: -1}
}

// Ops is how many operations were counted so far.
func (m *FS) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// StopAt chooses the moment of a crash: operation n, and every one after it, fails without effect.
func (m *FS) StopAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopAt = n
}

// FailAt makes operation n fail with err, once. Half of a write that fails is done.
func (m *FS) FailAt(n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failAt, m.failErr = n, err
}

// OnRead has f called before each ReadAt, to make it fail. nil ends that.
func (m *FS) OnRead(f func(name string, off int64, n int) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onRead = f
}

// Flip changes bits of a file, in memory and on disk, behind everybody's back.
func (m *FS) Flip(name string, off int64, mask byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("flip", name)
	if err != nil {
		return err
	}
	for _, c := range []*content{&n.now, &n.disk} {
		var b [1]byte
		if c.read(b[:], off) == 1 {
			b[0] ^= mask
			c.write(b[:], off)
		}
	}
	return nil
}

// BeforeEach has f called before each operation that counts, with nothing locked: the moment for a crash. nil ends that.
func (m *FS) BeforeEach(f func(Op)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = f
}

// begin is called at the beginning of each operation, without the lock. It tells what a bad disk makes of it.
func (m *FS) begin(op Op) Effect {
	m.mu.Lock()
	before, inject := m.before, m.inject
	if m.stopAt >= 0 && m.ops >= m.stopAt {
		before, inject = nil, nil
	}
	m.mu.Unlock()
	if before != nil && op.Kind != "read" {
		before(op)
	}
	if inject == nil {
		return Effect{}
	}
	e := inject(op)
	if e.Hang != nil {
		<-e.Hang
	}
	return e
}

// count numbers an operation. It returns the error that the operation is to fail with.
func (m *FS) count(op, name string, e Effect) error {
	n := m.ops
	if m.stopAt >= 0 && n >= m.stopAt {
		return &fs.PathError{Op: op, Path: name, Err: ErrStopped}
	}
	m.ops++
	if n == m.failAt {
		return &fs.PathError{Op: op, Path: name, Err: m.failErr}
	}
	if e.Err != nil {
		return &fs.PathError{Op: op, Path: name, Err: e.Err}
	}
	return nil
}

func split(name string) []string {
	name = strings.Trim(path.Clean(name), "/")
	if name == "." || name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

func (m *FS) find(op, name string) (*node, error) {
	n := m.root
	for _, part := range split(name) {
		next := n.children[part]
		if next == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
		n = next
	}
	return n, nil
}

// parent finds the directory that holds name.
func (m *FS) parent(op, name string) (dir *node, base string, err error) {
	dir, err = m.find(op, path.Dir(path.Clean(name)))
	if err == nil && !dir.dir {
		err = &fs.PathError{Op: op, Path: name, Err: errors.New("not a directory")}
	}
	return dir, path.Base(name), err
}

// Create implements vfs.FS.
func (m *FS) Create(name string) (vfs.File, error) {
	e := m.begin(Op{Kind: "create", Name: name})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.count("create", name, e); err != nil {
		return nil, err
	}
	dir, base, err := m.parent("create", name)
	if err != nil {
		return nil, err
	}
	if dir.children[base] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	n := &node{}
	m.changeNames(Op{Kind: "create", Name: name}, link{dir, base, n})
	return &file{fs: m, n: n, name: name}, nil
}

// Open implements vfs.FS.
func (m *FS) Open(name string) (vfs.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("open", name)
	if err == nil && n.dir {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("is a directory")}
	}
	if err != nil {
		return nil, err
	}
	return &file{fs: m, n: n, name: name}, nil
}

// MkdirAll implements vfs.FS.
func (m *FS) MkdirAll(dir string) error {
	e := m.begin(Op{Kind: "mkdir", Name: dir})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.count("mkdir", dir, e); err != nil {
		return err
	}
	n := m.root
	for _, part := range split(dir) {
		next := n.children[part]
		if next == nil {
			next = newDir()
			m.changeNames(Op{Kind: "mkdir", Name: dir}, link{n, part, next})
		}
		if n = next; !n.dir {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: errors.New("not a directory")}
		}
	}
	return nil
}

// List implements vfs.FS.
func (m *FS) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("list", dir)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.children)), nil
}

// Rename implements vfs.FS.
func (m *FS) Rename(from, to string) error {
	e := m.begin(Op{Kind: "rename", Name: from})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.count("rename", from, e); err != nil {
		return err
	}
	src, oldBase, err := m.parent("rename", from)
	if err != nil {
		return err
	}
	n := src.children[oldBase]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	dst, newBase, err := m.parent("rename", to)
	if err != nil {
		return err
	}
	if target := dst.children[newBase]; target != nil && (target.dir != n.dir || len(target.children) > 0) {
		return &fs.PathError{Op: "rename", Path: to, Err: fs.ErrExist}
	}
	m.changeNames(Op{Kind: "rename", Name: from}, link{src, oldBase, nil}, link{dst, newBase, n})
	return nil
}

// RemoveAll implements vfs.FS. The removal of a tree is one operation.
func (m *FS) RemoveAll(name string) error {
	e := m.begin(Op{Kind: "remove", Name: name})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.count("remove", name, e); err != nil {
		return err
	}
	dir, base, err := m.parent("remove", name)
	if err != nil || dir.children[base] == nil {
		return nil
	}
	m.changeNames(Op{Kind: "remove", Name: name}, link{dir, base, nil})
	return nil
}

// SyncDir implements vfs.FS (D4).
func (m *FS) SyncDir(dir string) error {
	e := m.begin(Op{Kind: "syncdir", Name: dir})
	m.mu.Lock()
	defer m.mu.Unlock()
	n, findErr := m.find("syncdir", dir)
	if err := m.count("syncdir", dir, e); err != nil {
		if findErr == nil && !errors.Is(err, ErrStopped) {
			lose(m.changesOf(n))
		}
		return err
	}
	if findErr != nil {
		return findErr
	}
	for _, c := range m.changesOf(n) {
		if !c.lost {
			c.apply(stableSide, nil)
		}
	}
	m.names = slices.DeleteFunc(m.names, func(c *change) bool { return c.touches(n) && !c.lost })
	return nil
}

func (m *FS) changesOf(dir *node) []*change {
	var list []*change
	for _, c := range m.names {
		if c.touches(dir) {
			list = append(list, c)
		}
	}
	return list
}

// Lock implements vfs.FS. The file of the lock is not made: nothing depends on it.
func (m *FS) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = path.Clean(name)
	if m.locked[name] {
		return nil, fmt.Errorf("lock %s: %w", name, vfs.ErrLocked)
	}
	m.locked[name] = true
	return unlocker(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.locked, name)
	}), nil
}

type unlocker func()

func (u unlocker) Close() error {
	u()
	return nil
}

// Restart is the file system after the death of its process: locks are free, nothing that was written is lost, and
// what was not synced still is not. Files that the dead process had open must not be used any more.
func (m *FS) Restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.locked = map[string]bool{}
	m.stopAt, m.failAt, m.onRead, m.before, m.inject = -1, -1, nil, nil, nil
}
