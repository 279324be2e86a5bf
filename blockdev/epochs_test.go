package blockdev

import (
	"math/rand/v2"
	"testing"

	"lockstep/wal"
)

func TestCommonPointOfKnownHistories(t *testing.T) {
	for _, c := range []struct {
		name       string
		a          EpochIndex
		aEnd       wal.LSN
		b          EpochIndex
		bEnd, want wal.LSN
		ok         bool
	}{
		{"both blank", nil, 0, nil, 0, 0, true},
		{"one blank", EpochIndex{{1, 1}}, 9, nil, 0, 0, true},
		{"same log", EpochIndex{{1, 1}}, 9, EpochIndex{{1, 1}}, 9, 9, true},
		{"one is behind", EpochIndex{{1, 1}, {2, 5}}, 9, EpochIndex{{1, 1}, {2, 5}}, 7, 7, true},
		{"one is behind by an epoch", EpochIndex{{1, 1}, {2, 5}}, 9, EpochIndex{{1, 1}}, 4, 4, true},
		{"ghosts of an old primary", EpochIndex{{1, 1}, {2, 5}}, 9, EpochIndex{{1, 1}}, 8, 4, true},
		{"both have ghosts", EpochIndex{{1, 1}, {3, 5}}, 9, EpochIndex{{1, 1}, {2, 7}}, 9, 4, true},
		{"nothing in common", EpochIndex{{2, 1}}, 9, EpochIndex{{1, 1}}, 9, 0, true},
		{"index too short", EpochIndex{{7, 100}}, 200, EpochIndex{{1, 1}}, 90, 0, false},
		{"agree where the short index reaches", EpochIndex{{7, 100}}, 200, EpochIndex{{1, 1}, {7, 100}}, 150, 150, true},
		{"one epoch with two beginnings proves nothing", EpochIndex{{1, 1}, {2, 5}}, 9, EpochIndex{{1, 1}, {2, 6}}, 9, 4, true},
	} {
		if got, ok := CommonPoint(c.a, c.aEnd, c.b, c.bEnd); got != c.want || ok != c.ok {
			t.Errorf("%s: %d %v, want %d %v", c.name, got, ok, c.want, c.ok)
		}
		if got, ok := CommonPoint(c.b, c.bEnd, c.a, c.aEnd); got != c.want || ok != c.ok {
			t.Errorf("%s, other way round: %d %v, want %d %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

// Two logs that share a prefix and then went their own ways, in epochs of their own (I3), agree up to where they
// parted: compared with the logs themselves, record by record.
func TestCommonPointEqualsComparingTheLogs(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	grow := func(log []wal.Epoch, e *wal.Epoch, step wal.Epoch) []wal.Epoch {
		for range rnd.IntN(4) {
			*e += step * wal.Epoch(1+rnd.IntN(2))
			for range rnd.IntN(4) {
				log = append(log, *e)
			}
		}
		return log
	}
	index := func(log []wal.Epoch) (x EpochIndex) {
		for i, e := range log {
			x = x.with(e, wal.LSN(i+1))
		}
		return x
	}
	for range 20000 {
		e := wal.Epoch(0)
		common := grow(nil, &e, 2)
		ea, eb := e-e%2, e-e%2+1 // even epochs are a's, odd ones b's
		a := grow(append([]wal.Epoch(nil), common...), &ea, 2)
		b := grow(append([]wal.Epoch(nil), common...), &eb, 2)
		want := wal.LSN(0)
		for l := min(len(a), len(b)); l > 0; l-- {
			if a[l-1] == b[l-1] {
				want = wal.LSN(l)
				break
			}
		}
		got, ok := CommonPoint(index(a), wal.LSN(len(a)), index(b), wal.LSN(len(b)))
		if !ok || got != want {
			t.Fatalf("seed %d: %v and %v: %d %v, want %d", seed, a, b, got, ok, want)
		}
	}
}

func TestEpochIndexKeepsTheNewest(t *testing.T) {
	var x EpochIndex
	for e := range wal.Epoch(100) {
		x = x.with(e, wal.LSN(10*e+1))
		x = x.with(e, wal.LSN(10*e+5))
	}
	if len(x) != MaxEpochs || !x.valid() {
		t.Fatalf("%d entries, valid %v", len(x), x.valid())
	}
	if e, ok := x.At(999); !ok || e != 99 {
		t.Error(e, ok)
	}
	if e, ok := x.At(361); !ok || e != 36 {
		t.Error(e, ok)
	}
	if _, ok := x.At(360); ok {
		t.Error("the index reaches back further than it can")
	}
	if y := x.upTo(980); y[len(y)-1].Epoch != 97 {
		t.Error(y[len(y)-1])
	}
}
