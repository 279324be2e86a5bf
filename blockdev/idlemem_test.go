package blockdev

import (
	"runtime"
	"testing"
)

// A node has many volumes, most of them idle: what a store needed to apply a burst is given back when it has nothing to do.
func TestIdleStoreGivesItsMemoryBack(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	steps := func(idle bool) {
		for did := true; did; {
			var err error
			if did, err = r.s.step(idle); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range uint64(100) {
		r.put(write(i, 1), write(i+200, 2))
	}
	fresh := heap()
	steps(false)
	busy := heap()
	if busy-fresh < 256<<10 {
		t.Fatalf("nothing to see: applying took %d bytes", busy-fresh)
	}
	steps(true)
	if idle := heap(); idle-fresh > (busy-fresh)/8 {
		t.Errorf("of %d bytes that applying took, %d are kept", busy-fresh, idle-fresh)
	}
	r.put(write(7, 1)) // and it goes on
	steps(true)
	r.check(holds(r, r.end()))
}
