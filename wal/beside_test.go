package wal

import (
	"bytes"
	"testing"

	"lockstep/wal/vfs"
)

// hookFS calls a function inside the next Sync or ReadAt of any file: what runs beside it, without luck.
type hookFS struct {
	vfs.FS
	inSync, inRead func()
}

type hookFile struct {
	vfs.File
	fs *hookFS
}

func (h *hookFS) Open(name string) (vfs.File, error) {
	f, err := h.FS.Open(name)
	return hookFile{f, h}, err
}

func once(f *func()) {
	if g := *f; g != nil {
		*f = nil
		g()
	}
}

func (f hookFile) Sync() error {
	err := f.File.Sync()
	once(&f.fs.inSync) // the sync is over, and nobody knows it yet
	return err
}

func (f hookFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(b, off)
	once(&f.fs.inRead)
	return n, err
}

func hooked(t *testing.T) (*hookFS, *Log) {
	t.Helper()
	_, o := created(t)
	h := &hookFS{FS: o.FS}
	o.FS = h
	l, _, _ := opened(t, o, Start{})
	return h, l
}

func TestSyncTakesNoCreditForWhatIsAppendedBesideIt(t *testing.T) {
	h, l := hooked(t)
	must1(l.Append(nextFrame(l, 1, 1, 0)))(t)
	h.inSync = func() { must1(l.Append(nextFrame(l, 2, 1, 0)))(t) }
	if lsn := must1(l.Sync())(t); lsn != 1 || l.Durable() != 1 || l.End() != 2 {
		t.Errorf("Sync gives %d, durable is %d of %d", lsn, l.Durable(), l.End())
	}
	if lsn := must1(l.Sync())(t); lsn != 2 || l.Durable() != 2 {
		t.Errorf("the next Sync gives %d, durable is %d", lsn, l.Durable())
	}
}

func TestReadFramesBesideACutStartsOver(t *testing.T) {
	h, l := hooked(t)
	frames := grow(t, l, 4)
	var other [][]byte
	h.inRead = func() {
		must(t, l.Cut(2))
		other = [][]byte{nextFrame(l, 99, 1, 0).b}
		f := must1(ParseFrame(other[0]))(t)
		must1(l.Append(f))(t)
	}
	buf := make([]byte, 20*BlockSize)
	n := must1(l.ReadFrames(1, buf))(t)
	if want := bytes.Join([][]byte{frames[0], frames[1], other[0]}, nil); !bytes.Equal(buf[:n], want) {
		t.Errorf("%d bytes, want %d: frames of before and after the cut", n, len(want))
	}
}
