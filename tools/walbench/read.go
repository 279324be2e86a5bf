package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/wal"
)

// read measures verified 4 KiB reads from the page cache, from places that are in the image and places that are still
// in the log, with as many readers as there are cores.
func read(o options) error {
	w, err := newStore(o, "read", 256<<20, 128<<20, true)
	if err != nil {
		return err
	}
	defer w.s.Abandon()
	if err := w.fill(); err != nil {
		return err
	}
	if err := w.readers(o, "image"); err != nil {
		return err
	}
	w.size(256)
	for at := uint64(0); w.s.Fill() < 0.9; at += w.count {
		w.b.Reset()
		w.add(at)
		f := w.seal()
		if err := w.s.Append(f); err != nil {
			return err
		}
		w.s.Commit(f.Last())
	}
	return w.readers(o, "image and log")
}

func (w *writer) readers(o options, from string) error {
	var n atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	before, began := used(), time.Now()
	for i := range runtime.NumCPU() {
		wg.Go(func() {
			rnd, dst := rand.New(rand.NewPCG(uint64(i), 1)), wal.AlignedBuffer(wal.BlockSize)
			for end := began.Add(o.duration()); time.Now().Before(end); n.Add(100) {
				for range 100 {
					if err := w.s.Read(rnd.Uint64N(w.s.Blocks()), dst); err != nil {
						failed.Store(&err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	elapsed, u := time.Since(began), used().since(before)
	fmt.Printf("%-16s %.2f million reads/s with %d readers, %.0f ns of CPU each\n", from+":", float64(n.Load())/elapsed.Seconds()/1e6,
		runtime.NumCPU(), float64(u.cpu.Nanoseconds())/float64(n.Load()))
	return nil
}
