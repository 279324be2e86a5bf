package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// fault is something bad that happens.
type fault int

const (
	faultKill fault = iota
	faultPower
	faultBlackout // all machines lose power
	faultPause
	faultIsolate // a machine, from some or all
	faultSplit   // everybody, in two
	faultOneWay
	faultReset
	faultSlowLink
	faultSlowDisk
	faultDiskError
	faultStopInIO // power is lost in the middle of a storage operation
	faultWipe
	faultFlip
	faultHandover
	faultLeader
	faultViewServer
	faultClock
	faultCount
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
	active  int // faults that last
	// cacheLost: a member has lost its page cache, and not everything is as it was again.
	cacheLost bool
	undo      []func() // what ends with the storm
}

// faultNames are for the command line.
var faultNames = [faultCount]string{faultKill: "kill", faultPower: "power", faultBlackout: "blackout", faultPause: "pause",
	faultIsolate: "isolate", faultSplit: "split", faultOneWay: "oneway", faultReset: "reset", faultSlowLink: "slowlink", faultSlowDisk: "slowdisk",
	faultDiskError: "diskerror", faultStopInIO: "stopinio", faultWipe: "wipe", faultFlip: "flip", faultHandover: "handover",
	faultLeader: "leader", faultViewServer: "viewserver", faultClock: "clock"}

// parseFaults reads a list of names.
func parseFaults(list string) ([]fault, error) {
	var faults []fault
	for name := range strings.SplitSeq(list, ",") {
		i := slices.Index(faultNames[:], name)
		if i < 0 {
			return nil, fmt.Errorf("there is no fault %q; there are %s", name, strings.Join(faultNames[:], ", "))
		}
		faults = append(faults, fault(i))
	}
	return faults, nil
}

func newNemesis(c *cluster, only []fault) *nemesis {
	n := &nemesis{c: c}
	w := c.w
	usual := [faultCount]int{faultKill: 6, faultPower: 4, faultBlackout: 1, faultPause: 4, faultIsolate: 3, faultSplit: 4, faultOneWay: 4, faultReset: 5,
		faultSlowLink: 3, faultSlowDisk: 3, faultDiskError: 1, faultStopInIO: 3, faultWipe: 2, faultFlip: 1, faultHandover: 3, faultLeader: 2,
		faultViewServer: 2, faultClock: 2}
	for i, x := range usual {
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
func (n *nemesis) during(do, undo func()) {
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
	n.c.w.after(n.spell(), end)
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

func (n *nemesis) do(f fault, m *machine) {
	c, w := n.c, n.c.w
	if c.sync == viewsvc.SyncFlush {
		n.cacheLost = n.cacheLost && !(c.complete() && n.active == 0)
		if losesCache(f) {
			if n.cacheLost || n.active > 0 || !c.complete() {
				return
			}
			n.cacheLost = true
		}
	}
	switch f {
	case faultKill:
		if m.p != nil {
			n.during(m.kill, m.start)
		}
	case faultPower:
		if m.powered {
			n.during(func() { m.cut(n.fate()) }, m.start)
		}
	case faultBlackout:
		if c.sync == viewsvc.SyncFlush {
			return
		}
		w.tr("blackout")
		w.stats.note(powerFailure)
		for _, m := range c.machines {
			n.during(func() { m.cut(n.fate()) }, m.start)
		}
	case faultPause:
		if p := m.p; p != nil && !p.paused {
			w.tr("%s is stopped", p.name)
			n.during(p.pause, func() { w.tr("%s goes on", p.name); p.resume() })
		}
	case faultIsolate:
		n.isolate(m)
	case faultSplit:
		n.split()
	case faultOneWay:
		if o := c.machines[w.rng.IntN(len(c.machines))]; o != m {
			n.cutLine(m.name, o.name)
		} else {
			n.cutLine(m.name, c.views.servers[w.rng.IntN(len(c.views.servers))])
		}
	case faultReset:
		if live := c.net.live(); len(live) > 0 {
			e := live[w.rng.IntN(len(live))]
			w.tr("a connection of %s to %s is reset", e.host, e.peer.host)
			e.reset()
		}
	case faultSlowLink:
		to := c.machines[w.rng.IntN(len(c.machines))].name
		from := m.name
		if w.one(2) { // requests stay on their way for long
			from, to = c.clients[w.rng.IntN(len(c.clients))].p.name, m.name
		}
		pair, d := hostPair{from, to}, w.between(time.Millisecond, 150*time.Millisecond)
		w.tr("the link %v takes %v more", pair, d)
		n.during(func() { c.net.slow[pair] += d }, func() { c.net.slow[pair] -= d })
	case faultSlowDisk:
		w.tr("the disk of %s is slow", m.name)
		n.during(func() { m.slow = 10 + w.rng.IntN(200) }, func() { m.slow = 1 })
	case faultDiskError:
		if m.p != nil && c.mayLose(m) {
			at := m.fs.Ops() + w.rng.IntN(60)
			w.tr("an operation of the disk of %s fails", m.name)
			err := error(syscall.EIO)
			if w.one(2) {
				err = syscall.ENOSPC
			}
			m.fs.FailAt(at, err)
			n.during(func() {}, func() { m.fs.FailAt(-1, nil); m.kill(); m.start() })
		}
	case faultStopInIO:
		if m.p != nil && c.sync == viewsvc.SyncAlways {
			m.fs.StopAt(m.fs.Ops() + w.rng.IntN(30))
			w.after(w.between(0, 20*time.Millisecond), func() { n.during(func() { m.cut(n.fate()) }, m.start) })
		}
	case faultWipe:
		n.wipe(m)
	case faultFlip:
		n.flip(m)
	case faultHandover:
		if mon := c.views.mon; mon != nil {
			_, to, err := mon.OrderHandover(volumeName, "")
			w.tr("handover to %s is ordered: %s", to, errText(err))
			c.views.flush()
		}
	case faultLeader:
		if c.views.mon != nil {
			c.views.elect(w.between(20*time.Millisecond, time.Second))
		}
	case faultViewServer:
		i := w.rng.IntN(len(c.views.servers))
		n.during(func() { c.views.setDown(i, true) }, func() { c.views.setDown(i, false) })
	case faultClock:
		if p := m.p; p != nil {
			rate := []float64{0.02, 0.5, 0.9, 1.1, 2}[w.rng.IntN(5)]
			if c.leases { // what leases are made for
				rate = []float64{0.96, 1.04}[w.rng.IntN(2)]
			}
			w.tr("the clock of %s runs at %v", p.name, rate)
			n.during(func() { p.setRate(rate) }, func() { p.setRate(1) })
		}
	case faultCount:
	}
}

// losesCache tells of faults that take a page cache along. In sync mode flush only one member at a time meets one: of the
// others each has everything, and the volume must not end up held. What happens to them meanwhile is another matter.
func losesCache(f fault) bool {
	return f == faultPower || f == faultWipe || f == faultDiskError
}

// cutLine loses what goes from one host to another.
func (n *nemesis) cutLine(from, to string) {
	n.c.w.tr("%s does not reach %s", from, to)
	n.during(func() { n.c.net.block(from, to) }, func() { n.c.w.tr("%s reaches %s again", from, to); n.c.net.unblock(from, to) })
}

// split parts everybody, view servers and clients too, into two sides that do not hear of each other. Often a primary
// and its clients are on one side and the view service on the other.
func (n *nemesis) split() {
	c, w := n.c, n.c.w
	var side [2][]string
	put := func(host string) { i := w.rng.IntN(2); side[i] = append(side[i], host) }
	for _, m := range c.machines {
		put(m.name)
	}
	for _, k := range c.clients {
		put(k.p.name)
	}
	if w.one(3) {
		for _, v := range c.views.servers {
			put(v)
		}
	} else {
		side[0] = append(side[0], c.views.servers...)
	}
	w.tr("%v and %v are parted", side[0], side[1])
	each := func(f func(from, to string)) {
		for _, a := range side[0] {
			for _, b := range side[1] {
				f(a, b)
				f(b, a)
			}
		}
	}
	n.during(func() { each(c.net.block) }, func() {
		w.tr("%v and %v are parted no more", side[0], side[1])
		each(c.net.unblock)
	})
}

// isolate cuts a machine off: from the view servers, from the other machines, from the clients, or from several of
// these.
func (n *nemesis) isolate(m *machine) {
	c, w := n.c, n.c.w
	var from []string
	views, nodes, clients := w.one(2), w.one(2), w.one(3)
	if !views && !nodes && !clients {
		views, nodes, clients = true, true, true
	}
	if views {
		from = append(from, c.views.servers...)
	}
	for _, o := range c.machines {
		if nodes && o != m && !w.one(4) {
			from = append(from, o.name)
		}
	}
	for _, k := range c.clients {
		if clients {
			from = append(from, k.p.name)
		}
	}
	w.tr("%s is cut off from %v", m.name, from)
	n.during(func() {
		for _, o := range from {
			c.net.block(m.name, o)
			c.net.block(o, m.name)
		}
	}, func() {
		w.tr("%s is cut off no more from %v", m.name, from)
		for _, o := range from {
			c.net.unblock(m.name, o)
			c.net.unblock(o, m.name)
		}
	})
}

// wipe gives a machine an empty disk, if its replica can be missed once nothing of it is under way any more.
func (n *nemesis) wipe(m *machine) {
	c, w := n.c, n.c.w
	if !m.powered {
		return
	}
	n.during(func() { m.cut(memfs.None) }, m.start)
	w.after(1200*time.Millisecond, func() {
		if !m.powered && w.now-m.stopped >= time.Second && c.mayLose(m) {
			m.wipe()
			w.stats.note(wiped)
		}
	})
}

// flip damages a block of a replica's image that another member has, too.
func (n *nemesis) flip(m *machine) {
	c, w := n.c, n.c.w
	r := c.views.current()
	if m.replica == nil || !r.Has(m.replica.ID()) || len(r.Backups) == 0 || len(c.damagedBlocks) > 0 || !c.mayLose(m) {
		return
	}
	run := hotRuns[w.rng.IntN(len(hotRuns))]
	block := run[0] + w.rng.Uint64N(run[1])
	if err := m.fs.Flip(volumeDir+"/data.img", int64(block)*4096+int64(w.rng.IntN(4096)), 0x10); err != nil {
		return
	}
	w.tr("a bit of block %d of %s flips", block, m.name)
	c.damagedBlocks[block], c.mayFailReads, m.flipped = true, true, true
}

// heal ends all faults.
func (n *nemesis) heal() {
	n.over = true
	n.c.w.tr("the storm is over")
	for _, f := range n.undo {
		f()
	}
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
	if n.c.views.mon == nil {
		n.c.views.elect(100 * time.Millisecond)
	}
}
