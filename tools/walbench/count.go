package main

import (
	"sync/atomic"

	"lockstep/wal/vfs"
)

// counting is the real file system, and counts the bytes that are written to its files: what goes to the disk, but for
// the file system's own metadata, and for what is written twice before the disk gets it.
type counting struct {
	vfs.OS
	bytes *atomic.Int64
}

type countedFile struct {
	vfs.File
	vfs.Cleaner
	vfs.CacheDropper
	bytes *atomic.Int64
}

func (c counting) Create(name string) (vfs.File, error) { return c.counted(c.OS.Create(name)) }
func (c counting) Open(name string) (vfs.File, error)   { return c.counted(c.OS.Open(name)) }

func (c counting) counted(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return countedFile{f, f.(vfs.Cleaner), f.(vfs.CacheDropper), c.bytes}, nil
}

func (f countedFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	f.bytes.Add(int64(n))
	return n, err
}
