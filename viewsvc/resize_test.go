package viewsvc

import (
	"errors"
	"testing"
)

// wish is an operator's, carried out.
func (r *rig) wish(size uint64) error {
	r.t.Helper()
	cmd, err := r.m.PlanResize("vol0", size)
	if err == nil {
		err = r.apply(cmd)
	}
	r.settle()
	r.ticks(2)
	return err
}

func (r *rig) volume() Volume { return r.s.volumes[vol].Volume }

// A wish is for the nodes, and for gateways nothing; the volume has the size when its primary says that it serves it.
func TestVolumeGrowsWhenItsPrimarySaysSo(t *testing.T) {
	r := pair(t)
	if err := r.wish(3 << 20); err != nil {
		t.Fatal(err)
	}
	if v := r.volume(); v.Size != 1<<20 || v.Wanted != 3<<20 || !r.saw(EventVolumeResize) {
		t.Fatalf("after the wish: %+v", v)
	}
	if o := r.m.nodes["n2"].orders[vol]; o.Volume.Wanted != 3<<20 {
		t.Errorf("a backup's orders have %+v", o.Volume)
	}
	r.nodes["n2"].Replicas[0].Room = 3 << 20
	r.ticks(2)
	for _, p := range r.m.nodes["n1"].orders[vol].Peers {
		if want := uint64(3 << 20); p.Node == "n2" && p.Room != want || p.Node == "n1" && p.Room != 0 {
			t.Errorf("the primary hears that %s has room for %d bytes", p.Node, p.Room)
		}
	}
	r.nodes["n2"].Replicas[0].Serves = 9 << 20 // not the primary's word
	r.ticks(2)
	if v := r.volume(); v.Size != 1<<20 {
		t.Fatalf("a backup's word made it %+v", v)
	}
	r.nodes["n1"].Replicas[0].Serves = 3 << 20
	r.lead() // the wish is not lost with the leader
	r.ticks(3)
	if v := r.volume(); v.Size != 3<<20 || v.Wanted != 0 || !r.saw(EventVolumeGrown) {
		t.Fatalf("after the primary's word: %+v", v)
	}
	r.nodes["n1"].Replicas[0].Serves = 2 << 20
	r.ticks(3)
	if v := r.volume(); v.Size != 3<<20 {
		t.Errorf("it shrank: %+v", v)
	}
}

func TestVolumeNeverShrinks(t *testing.T) {
	r := pair(t)
	var rule *RuleError
	for _, c := range []struct {
		size uint64
		kind error // nil: rule V11
	}{{1<<20 - BlockSize, ErrInvalid}, {0, ErrInvalid}, {1<<20 + 1, ErrInvalid}, {MaxVolumeSize + BlockSize, ErrInvalid}} {
		if err := r.wish(c.size); !errors.Is(err, c.kind) {
			t.Errorf("%d bytes: %v", c.size, err)
		}
	}
	mustApply(t, r.s, Command{Op: OpGrown, Volume: vol, Size: 8 << 20})
	for _, op := range []Op{OpResize, OpGrown} {
		if _, err := r.s.Apply(Command{Op: op, Volume: vol, Size: 7 << 20}); !errors.As(err, &rule) || rule.Rule != "V11" {
			t.Errorf("%s to less than it has: %v", op, err)
		}
	}
	if _, err := r.s.Apply(Command{Op: OpGrown, Volume: vol, Size: 9<<20 + 1}); !errors.As(err, &rule) {
		t.Errorf("grown to an odd size: %v", err)
	}
	if err := r.wish(20 << 20); err != nil {
		t.Fatal(err)
	}
	if err := r.wish(10 << 20); err != nil || r.volume().Wanted != 10<<20 {
		t.Errorf("a smaller wish: %v, %+v", err, r.volume())
	}
	if err := r.wish(8 << 20); err != nil || r.volume().Wanted != 0 || r.volume().Size != 8<<20 {
		t.Errorf("taken back: %v, %+v", err, r.volume())
	}
}
