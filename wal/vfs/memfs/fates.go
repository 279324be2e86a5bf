package memfs

import (
	"fmt"
	"math/rand/v2"
)

// Fate decides what of the un-synced operations is on the disk after a crash (D2): for operation i of FS.Pending, and for
// each sector of it if it is a write; 0 otherwise.
type Fate struct {
	Name     string
	Survives func(i, sector int) bool
	// Reversed has what survives of the files' operations take effect from the newest to the oldest: a disk that
	// reorders (D3). Where no two of them overlap it changes nothing. Directories are journaled, their order stays.
	Reversed bool
}

// Fates of everything at once.
var (
	None = Fate{Name: "none", Survives: func(int, int) bool { return false }}
	All  = Fate{Name: "all", Survives: func(int, int) bool { return true }}
	// Backwards is the fate in which everything survives, in the opposite order.
	Backwards = Fate{Name: "reordered", Survives: All.Survives, Reversed: true}
)

// Drop is the fate in which operation i alone is lost.
func Drop(i int) Fate {
	return Fate{Name: fmt.Sprintf("drop %d", i), Survives: func(j, _ int) bool { return j != i }}
}

// Keep is the fate in which operation i alone survives.
func Keep(i int) Fate {
	return Fate{Name: fmt.Sprintf("keep %d", i), Survives: func(j, _ int) bool { return j == i }}
}

// Torn is the fate in which only the sectors [from, to) of operation i survive, and all others whole.
func Torn(i, from, to int) Fate {
	return Fate{
		Name:     fmt.Sprintf("torn %d: %d to %d", i, from, to),
		Survives: func(j, s int) bool { return j != i || from <= s && s < to },
	}
}

// Random is a fate in which each sector survives with probability p.
func Random(seed uint64, p float64) Fate { return randomUnits(seed, p, 1) }

// RandomPages is Random by 4 KiB at a time, counted from where each write begins.
func RandomPages(seed uint64, p float64) Fate { return randomUnits(seed, p, pageBytes/sectorBytes) }

// RandomOps is the fate in which each operation survives whole with probability p, some in another order.
func RandomOps(seed uint64, p float64) Fate {
	f := randomUnits(seed, p, 1<<30)
	f.Reversed = seed%2 == 1
	return f
}

func randomUnits(seed uint64, p float64, sectors int) Fate {
	return Fate{
		Name: fmt.Sprintf("random %d %.2f by %d", seed, p, sectors),
		Survives: func(i, s int) bool {
			rng := rand.NewPCG(seed, uint64(i)<<32|uint64(s/sectors))
			rng.Uint64() // the first ones of neighbouring seeds are alike
			return float64(rng.Uint64()>>11)/(1<<53) < p
		},
	}
}

// Fates lists the fates that a crash test should try for pending operations: none and all survive, in either order; each
// alone is lost, survives, is torn; and random ones.
//
// The newest operation is torn at every sector if it has few, at both ends, in the middle and at pages otherwise. An
// older one was torn so when it was the newest, with nothing behind it; now each is torn once, somewhere.
func Fates(pending []Op, seed uint64) []Fate {
	list := []Fate{None}
	if len(pending) == 0 {
		return list
	}
	list = append(list, All, Backwards)
	last := len(pending) - 1
	for i, op := range pending {
		if len(pending) > 1 {
			list = append(list, Drop(i), Keep(i))
		}
		cuts := tears(op)
		if i < last && len(cuts) > 0 {
			k := int(mix(seed, uint64(i)) % uint64(len(cuts)))
			cuts = cuts[k : k+1]
		}
		for _, c := range cuts {
			list = append(list, Torn(i, c[0], c[1]))
		}
	}
	for k := range uint64(2) {
		p := 0.3 + 0.4*float64(k)
		list = append(list, Random(seed+k, p), RandomPages(seed+k, p))
		if len(pending) > 2 {
			list = append(list, RandomOps(seed+k, p))
		}
	}
	return list
}

// everySector is the longest write, in sectors, that is torn at each.
const everySector = 4

// tears lists which sectors, [from, to), may be all that is left of a write.
func tears(op Op) (list [][2]int) {
	if op.Kind != "write" {
		return nil
	}
	n := int((op.Off+op.Len+sectorBytes-1)/sectorBytes - op.Off/sectorBytes)
	const page = pageBytes / sectorBytes
	at := []int{1, n / 2, n - 1}
	switch {
	case n < 2:
		return nil
	case n <= everySector:
		at = at[:0]
		for s := 1; s < n; s++ {
			at = append(at, s)
		}
	case n > 2*page:
		at = append(at, page, n/2/page*page, n-page)
	case n > page:
		at = append(at, page)
	}
	for _, s := range at {
		list = append(list, [2]int{0, s}, [2]int{s, n})
	}
	return list
}
