package main

import (
	"slices"
	"time"

	"lockstep/wal/vfs/memfs"
)

// nemesis makes faults happen. Which ones are common is the seed's choice: in most runs a few kinds only, so that what
// takes many of one kind is found, too.
type nemesis struct {
	c       *cluster
	weights [faultCount]int
	total   int
	pace    time.Duration
	spite   int // one provocation in so many is answered; 0: none
	over    bool
	active  int      // faults that last
	left    *machine // stranded
	// cacheLost: a member has lost its page cache, and not everything is as it was again.
	cacheLost bool
	undo      []func() // what ends with the storm
}

func newNemesis(c *cluster, only []fault) *nemesis {
	n := &nemesis{c: c}
	w := c.w
	usual := [faultCount]int{faultKill: 6, faultPower: 4, faultBlackout: 1, faultPause: 4, faultIsolate: 3, faultSplit: 4, faultOneWay: 4, faultReset: 5,
		faultSlowLink: 3, faultSlowDisk: 3, faultDiskError: 1, faultFull: 1, faultStopInIO: 3, faultWipe: 2, faultFlip: 1, faultHandover: 3, faultLeader: 2,
		faultViewServer: 2, faultClock: 2, faultGateway: 2, faultRestart: 3, faultUpgrade: 1, faultVerify: 1, faultScrub: 1,
		faultStrand: 1, faultForce: 1}
	for i, x := range usual[:faultPutBack] {
		switch w.rng.IntN(4) {
		case 0:
			x *= 5
		case 1, 2:
			x = 0
		}
		if len(only) > 0 {
			if x = 0; slices.Contains(only, fault(i)) {
				x = 1 + w.rng.IntN(4)
			}
		}
		n.weights[i] = x
		n.total += x
	}
	n.spite = []int{0, 12, 4}[w.rng.IntN(3)]
	n.pace = []time.Duration{60, 200, 600, 1500}[w.rng.IntN(4)] * time.Millisecond
	return n
}

func (n *nemesis) begin() {
	if n.total > 0 {
		n.next()
	}
	if n.c.ages {
		n.age()
	}
}

func (n *nemesis) next() {
	n.c.w.after(n.c.w.between(n.pace/4, 2*n.pace), func() {
		if !n.over {
			n.strike(n.some())
			n.next()
		}
	})
}

// provoke strikes a machine soon after something has happened there of which there is little time to go wrong: a change of
// state, a proposal, the beginning of a copy.
func (n *nemesis) provoke(m *machine) {
	w := n.c.w
	if n.over || n.total == 0 || w.now < bootTime || n.spite == 0 || !w.one(n.spite) {
		return
	}
	w.after(w.between(0, 20*n.c.net.reach), func() {
		if !n.over {
			n.strike(m)
		}
	})
}

func (n *nemesis) strike(m *machine) {
	x := n.c.w.rng.IntN(n.total)
	for f, weight := range n.weights {
		if x -= weight; x < 0 {
			n.do(fault(f), m)
			return
		}
	}
}

// some is any machine; often the primary's.
func (n *nemesis) some() *machine {
	w := n.c.w
	if w.one(3) {
		if m := n.c.byReplica(n.c.views.current().Primary); m != nil {
			return m
		}
	}
	return n.c.machines[w.rng.IntN(len(n.c.machines))]
}

// spell is how long something lasts: now and then longer than anybody waits.
func (n *nemesis) spell() time.Duration {
	w := n.c.w
	switch w.rng.IntN(4) {
	case 0:
		return w.between(time.Second, 4*time.Second)
	case 1:
		return w.between(10*time.Millisecond, 60*time.Millisecond)
	default:
		return w.between(50*time.Millisecond, time.Second)
	}
}

// during does something and undoes it later.
func (n *nemesis) during(do, undo func()) { n.lasting(n.spell(), do, undo) }

func (n *nemesis) lasting(d time.Duration, do, undo func()) {
	done := false
	end := func() {
		if !done {
			done = true
			n.active--
			undo()
		}
	}
	n.active++
	do()
	n.undo = append(n.undo, end)
	n.c.w.after(d, end)
}

func (n *nemesis) fate() memfs.Fate {
	w := n.c.w
	switch w.rng.IntN(4) {
	case 0:
		return memfs.None
	case 1:
		return memfs.All
	default:
		return memfs.Random(w.rng.Uint64(), w.rng.Float64())
	}
}

// heal ends all faults.
func (n *nemesis) heal() {
	n.over = true
	n.c.w.tr("the storm is over")
	for _, f := range n.undo {
		f()
	}
	n.sameRelease()
	for _, m := range n.c.machines {
		m.fs.FailAt(-1, nil)
		if m.p != nil && m.store != nil && m.store.Err() != nil {
			m.kill()
		}
		m.start()
	}
	for i := range n.c.views.servers {
		n.c.views.setDown(i, false)
	}
	if n.c.views.lead == nil {
		n.c.views.elect(100 * time.Millisecond)
	}
}
