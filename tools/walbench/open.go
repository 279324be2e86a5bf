package main

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// opening measures a new volume of 1 TiB, and how long a log takes to recover that is full of 4 KiB writes.
func opening(o options) error {
	w, err := newStore(o, "sparse", 1<<40, 64<<20, true)
	if err != nil {
		return err
	}
	if err := w.s.Abandon(); err != nil {
		return err
	}
	dir := filepath.Join(o.dir, "sparse")
	disk, err := diskUse(dir)
	if err != nil {
		return err
	}
	before := heap()
	began := time.Now()
	if w, err = openStore(dir, false); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Printf("1 TiB volume: %.1f MiB on disk besides its log, opened in %v, %.1f MiB of memory\n", float64(disk)/(1<<20), took.Round(time.Millisecond),
		float64(heap()-before)/(1<<20))
	if err := w.s.Abandon(); err != nil {
		return err
	}

	const log = 1024 // MiB
	if w, err = newStore(o, "full", o.volume<<20, log<<20, true); err != nil {
		return err
	}
	w.size(1)
	for w.s.Fill() < 0.9 {
		f := w.frame(o.writes)
		if err := w.s.Append(f); err != nil {
			return err
		}
		w.s.Commit(f.Last())
	}
	if err := w.s.Sync(); err != nil {
		return err
	}
	fill := w.s.Fill()
	if err := w.s.Abandon(); err != nil {
		return err
	}
	u, began := used(), time.Now()
	if w, err = openStore(filepath.Join(o.dir, "full"), true); err != nil {
		return err
	}
	took, u = time.Since(began), used().since(u)
	fmt.Printf("log of %d MiB, %.0f %% full, recovered in %v, %v of CPU\n", log, 100*fill, took.Round(time.Millisecond), u.cpu.Round(time.Millisecond))
	return w.s.Abandon()
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// diskUse is what a replica takes on the disk without its log.
func diskUse(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".seg") {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return err
		}
		n += st.Blocks * 512
		return nil
	})
	return n, err
}
