package memfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// file is an open file.
type file struct {
	fs     *FS
	n      *node
	name   string
	closed bool // guarded by fs.mu
}

func (f *file) check(op string, off, n int64) error {
	if f.closed {
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	}
	if off < 0 || n < 0 {
		return &fs.PathError{Op: op, Path: f.name, Err: fmt.Errorf("offset %d, length %d", off, n)}
	}
	return nil
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	e := f.fs.begin(Op{Kind: "read", Name: f.name, Off: off, Len: int64(len(b))})
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("read", off, 0); err != nil {
		return 0, err
	}
	if f.fs.onRead != nil {
		if err := f.fs.onRead(f.name, off, len(b)); err != nil {
			return 0, &fs.PathError{Op: "read", Path: f.name, Err: err}
		}
	}
	if e.Err != nil {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: e.Err}
	}
	n := f.n.now.read(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	e := f.fs.begin(Op{Kind: "write", Name: f.name, Off: off, Len: int64(len(b))})
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("write", off, 0); err != nil {
		return 0, err
	}
	n := len(b)
	err := f.fs.count("write", f.name, e)
	switch {
	case errors.Is(err, ErrStopped):
		return 0, err
	case err != nil && e.Err != nil:
		n = min(n, e.Sectors*sectorBytes)
	case err != nil:
		n = n / 2 / sectorBytes * sectorBytes
	case e.Lost || e.Shift != 0:
		f.misplace(b, off, e)
		return n, nil
	}
	f.fs.changeFile(f.n, Op{Kind: "write", Name: f.name, Off: off, Len: int64(n)}, slices.Clone(b[:n]))
	return n, err
}

// misplace makes of a write what a disk does that lies. The file's length is the file system's business, and right.
func (f *file) misplace(b []byte, off int64, e Effect) {
	if end := off + int64(len(b)); end > f.n.now.size {
		f.fs.changeFile(f.n, Op{Kind: "truncate", Name: f.name, Len: end}, nil)
	}
	if off += e.Shift; off < 0 {
		return
	}
	if b = b[:max(0, min(int64(len(b)), f.n.now.size-off))]; !e.Lost && len(b) > 0 {
		f.fs.changeFile(f.n, Op{Kind: "write", Name: f.name, Off: off, Len: int64(len(b))}, slices.Clone(b))
	}
}

func (f *file) Truncate(size int64) error {
	return f.change(Op{Kind: "truncate", Name: f.name, Len: size})
}

func (f *file) PunchHole(off, n int64) error {
	return f.change(Op{Kind: "punch", Name: f.name, Off: off, Len: n})
}

func (f *file) change(op Op) error {
	e := f.fs.begin(op)
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check(op.Kind, op.Off, op.Len); err != nil {
		return err
	}
	if err := f.fs.count(op.Kind, f.name, e); err != nil {
		return err
	}
	f.fs.changeFile(f.n, op, nil)
	return nil
}

func (f *file) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.n.now.size, f.check("stat", 0, 0)
}

func (f *file) Sync() error {
	e := f.fs.begin(Op{Kind: "sync", Name: f.name})
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("sync", 0, 0); err != nil {
		return err
	}
	if err := f.fs.count("sync", f.name, e); err != nil {
		if !errors.Is(err, ErrStopped) {
			lose(f.n.pending)
			if e.Drop {
				f.n.now = f.n.disk.clone()
			}
		}
		return err
	}
	f.n.sync()
	return nil
}

// sync makes the pending changes stable but for those that a failed sync lost; a lost one is of no consequence any
// more where something newer is written over it.
func (n *node) sync() {
	var lost []*change
	for _, c := range n.pending {
		if c.lost {
			lost = append(lost, c)
			continue
		}
		c.apply(stableSide, nil)
		lost = slices.DeleteFunc(lost, func(old *change) bool {
			return c.op.Kind == "truncate" || old.op.Off < c.op.Off+c.op.Len && c.op.Off < old.op.Off+old.op.Len
		})
	}
	n.pending = lost
}

func (f *file) StartWriteback(off, n int64) {}

func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check("close", 0, 0)
	f.closed = true
	return err
}

// DropCache implements vfs.CacheDropper: what a failed sync lost is not seen any more, as a page that was written back
// in vain is clean and not what is on the disk.
func (f *file) DropCache() {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.n
	n.pending = slices.DeleteFunc(n.pending, func(c *change) bool { return c.lost })
	n.now = n.disk.clone()
	for _, c := range n.pending {
		c.apply(seenSide, nil)
	}
}
