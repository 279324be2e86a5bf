package blockdev

import (
	"math/rand/v2"
	"slices"
	"testing"

	"lockstep/wal"
)

// The table against a map, with blocks that collide and extents that overlap.
func TestPageTableBehavesAsAMap(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	const blocks = 4096
	for range 20 {
		var table pageTable
		model := map[uint64]loc{}
		extents := map[wal.LSN]zeroExtent{}
		covered := func(block uint64) bool {
			for _, e := range extents {
				if e.from <= block && block < e.to {
					return true
				}
			}
			return false
		}
		for lsn := wal.LSN(1); lsn < 3000; lsn++ {
			block := rnd.Uint64N(blocks)
			if rnd.IntN(2) == 0 {
				block %= 64
			}
			switch k := rnd.IntN(100); {
			case k < 55:
				l := loc{wal.Pos(lsn), rnd.Uint32()}
				table.set(block, l)
				model[block] = l
			case k < 90:
				l := model[block]
				if rnd.IntN(4) == 0 {
					l = loc{wal.Pos(lsn), 1} // changed meanwhile: stays
				} else if covered(block) {
					continue // the applier brings the extent to the image before what lies on it
				} else {
					delete(model, block)
				}
				table.clear(block, l)
			case k < 97:
				n := 1 + rnd.Uint64N(min(3, blocks-block))
				sum := rnd.Uint32N(2)
				table.setZero(block, n, lsn, sum)
				for b := block; b < block+n; b++ {
					model[b] = zeroLoc(lsn, sum)
				}
			case k < 99:
				block %= blocks - maxZeroEntries - 1
				n := maxZeroEntries + 1 + rnd.Uint64N(blocks-maxZeroEntries-1-block)
				sum := rnd.Uint32N(2)
				table.setZero(block, n, lsn, sum)
				for b := block; b < block+n; b++ {
					model[b] = zeroLoc(lsn, sum)
				}
				extents[lsn] = zeroExtent{from: block, to: block + n}
			default:
				for l := range extents {
					table.zeroes.applied(l)
					delete(extents, l)
					for b, m := range model {
						if m.pos == zeroBit|wal.Pos(l) {
							delete(model, b)
						}
					}
					break
				}
			}
		}
		got := make([]loc, blocks)
		table.lookup(0, got)
		for b, l := range got {
			if l != model[uint64(b)] {
				t.Fatalf("seed %d: block %d is at %+v, not %+v", seed, b, l, model[uint64(b)])
			}
		}
		from := rnd.Uint64N(blocks)
		part := make([]loc, blocks-from)
		table.lookup(from, part)
		if !slices.Equal(part, got[from:]) {
			t.Fatalf("seed %d: lookup from %d differs", seed, from)
		}
	}
}

// The table's memory follows what is in the log, not where on the disk it goes.
func TestPageTableMemoryIsBoundedByEntries(t *testing.T) {
	var table pageTable
	rnd := rand.New(rand.NewPCG(1, 1))
	const live = 1 << 16
	var queue [live]uint64
	for i := range 10 * live {
		if i >= live {
			var l [1]loc
			table.lookup(queue[i%live], l[:])
			table.clear(queue[i%live], l[0])
		}
		queue[i%live] = rnd.Uint64N(1 << 38)
		table.set(queue[i%live], loc{wal.Pos(i + 1), 1})
	}
	slots := 0
	for i := range table.shards {
		slots += len(table.shards[i].slots)
	}
	if slots > 4*live {
		t.Errorf("%d slots for %d entries", slots, live)
	}
}

func TestRingIsAQueueWithTwoEnds(t *testing.T) {
	var r ring[int]
	var model []int
	rnd := rand.New(rand.NewPCG(5, 5))
	for i := range 20000 {
		switch k := rnd.IntN(10); {
		case k < 6:
			r.push(i)
			model = append(model, i)
		case k < 8 && len(model) > 0:
			n := 1 + rnd.IntN(len(model))
			r.dropFront(n)
			model = model[n:]
		case len(model) > 0:
			r.dropBack(1)
			model = model[:len(model)-1]
		}
		if r.len() != len(model) || len(model) > 0 && (*r.at(0) != model[0] || *r.at(r.len() - 1) != model[len(model)-1]) {
			t.Fatal(i)
		}
	}
}

// Sums against a slice, with a cache of a few pages, so that pages are dropped and written early all the time.
func TestSumTableBehavesAsASlice(t *testing.T) {
	const volume = 64 * sumsPerPage * BlockSize
	f := newMemSums(t, volume)
	table := newSumTable(f, volume)
	table.limit = 4
	rnd := rand.New(rand.NewPCG(7, 7))
	model := make([]uint32, volume/BlockSize)
	check := func() {
		t.Helper()
		from := rnd.Uint64N(uint64(len(model)))
		got := make([]uint32, 1+rnd.IntN(min(3000, len(model)-int(from))))
		if err := table.get(from, got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, model[from:int(from)+len(got)]) {
			t.Fatal("sums differ")
		}
	}
	for range 3000 {
		b := rnd.Uint64N(uint64(len(model)))
		switch k := rnd.IntN(20); {
		case k < 15:
			model[b] = rnd.Uint32()
			if err := table.set(b, model[b]); err != nil {
				t.Fatal(err)
			}
		case k < 16:
			n := 1 + rnd.Uint64N(min(5000, uint64(len(model))-b))
			sum := rnd.Uint32N(2)
			for i := range n {
				model[b+i] = sum
			}
			if err := table.fill(b, n, sum); err != nil {
				t.Fatal(err)
			}
		case k < 17:
			if err := table.write(); err != nil {
				t.Fatal(err)
			}
			table = newSumTable(f, volume)
			table.limit = 4
		default:
			check()
		}
		if len(table.resident) > table.limit+1 {
			t.Fatalf("%d pages in memory, limit %d", len(table.resident), table.limit)
		}
	}
}

// entries counts what the table has.
func (t *pageTable) entries() int {
	n := int(t.zeroes.count.Load())
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += s.used
		s.mu.Unlock()
	}
	return n
}
