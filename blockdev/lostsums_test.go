package blockdev

import (
	"os"
	"path"
	"testing"
)

// B9: a stretch of data.crc that reads as zeroes does not turn its blocks into holes.
func TestLostSumsAreCorruptionAndNoHoles(t *testing.T) {
	for name, size := range map[string]int64{"sector": 512, "page": pageSize} {
		t.Run(name, func(t *testing.T) {
			r := osRig(t, StoreOptions{Manual: true})
			r.put(write(3, 5), write(130, 3))
			r.put(trim(4, 1), zero(131, 1))
			r.check(r.s.Close())
			f, err := os.OpenFile(path.Join(r.dir, sumsName), os.O_RDWR, 0)
			r.check(err)
			_, err = f.WriteAt(make([]byte, size), 0)
			r.check(err)
			r.check(f.Close())
			r.open()
			bad := map[uint64]bool{3: true, 5: true, 6: true, 7: true}
			if size == pageSize {
				bad[130], bad[132] = true, true
				r.hist[3].flags = 0 // that it was to stay allocated is lost, too
			}
			r.checkBlocks(bad)
			r.put(write(5, 1)) // what is written anew is good
			delete(bad, 5)
			r.checkBlocks(bad)
			r.steps()
			r.checkBlocks(bad)
			for b := range bad {
				r.check(r.s.Repair(b, r.good(b), r.end()))
			}
			r.verify()
			r.check(r.s.Close())
			r.open()
			r.verify()
		})
	}
}
