package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"lockstep/blockdev"
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
	faultFull     // a disk is full, or all are
	faultStopInIO // power is lost in the middle of a storage operation
	faultWipe
	faultFlip
	faultHandover
	faultLeader
	faultViewServer
	faultClock
	faultGateway // a gateway's process is killed
	faultRestart // a node's process is stopped in good order, as for an upgrade
	faultUpgrade // likewise, and it is started as another release, whose nodes speak another version of the protocol
	faultVerify  // an operator's order
	faultScrub   // likewise
	faultStrand  // a primary is left behind with some of its clients
	faultForce   // all members are gone, and an operator makes do with an older copy
	faultPutBack // a machine gets a disk that it had before
	faultCount
)

// faultNames are for the command line.
var faultNames = [faultCount]string{faultKill: "kill", faultPower: "power", faultBlackout: "blackout", faultPause: "pause",
	faultIsolate: "isolate", faultSplit: "split", faultOneWay: "oneway", faultReset: "reset", faultSlowLink: "slowlink", faultSlowDisk: "slowdisk",
	faultDiskError: "diskerror", faultFull: "full", faultStopInIO: "stopinio", faultWipe: "wipe", faultFlip: "flip", faultHandover: "handover",
	faultLeader: "leader", faultViewServer: "viewserver", faultClock: "clock", faultGateway: "gateway", faultRestart: "restart", faultUpgrade: "upgrade",
	faultVerify: "verify", faultScrub: "scrub", faultStrand: "strand", faultForce: "force", faultPutBack: "putback"}

// profile is what runs have to be like: the zero one leaves all of it to the seed.
type profile struct {
	faults []fault // the only kinds; nil: all
	leases bool    // clocks are good enough for them
	claims bool    // some clients want the volume for themselves
	three  bool    // copies, at least
}

// parseProfile reads a list of names: of faults, and of what else runs are to have.
func parseProfile(list string) (profile, error) {
	var p profile
	for name := range strings.SplitSeq(list, ",") {
		switch i := slices.Index(faultNames[:], name); {
		case i >= 0:
			p.faults = append(p.faults, fault(i))
		case name == "leases":
			p.leases = true
		case name == "claims":
			p.claims = true
		case name == "three":
			p.three = true
		case name != "":
			return profile{}, fmt.Errorf("there is no fault %q; there are %s; and with leases, claims, three (copies) each run has these",
				name, strings.Join(faultNames[:], ", "))
		}
	}
	return p, nil
}

func (n *nemesis) do(f fault, m *machine) {
	c, w := n.c, n.c.w
	if c.sync == viewsvc.SyncFlush && !c.operator {
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
		if c.sync == viewsvc.SyncFlush && !c.operator {
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
			since := w.now
			n.during(p.pause, func() {
				w.tr("%s goes on", p.name)
				m.filled += w.now - since // meanwhile it made nothing of space that it got
				p.resume()
			})
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
			from, to = c.gateways[w.rng.IntN(len(c.gateways))].name, m.name
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
	case faultFull:
		n.full(m)
	case faultStopInIO:
		if m.p != nil && (c.sync == viewsvc.SyncAlways || c.operator) {
			m.fs.StopAt(m.fs.Ops() + w.rng.IntN(30))
			w.after(w.between(0, 20*time.Millisecond), func() { n.during(func() { m.cut(n.fate()) }, m.start) })
		}
	case faultWipe:
		n.wipe(m)
	case faultFlip:
		n.flip(m)
	case faultHandover:
		if o := c.views.lead; o != nil {
			_, to, err := o.mon.OrderHandover(volumeName, "")
			w.tr("handover to %s is ordered: %s", to, errText(err))
			c.views.flush()
		}
	case faultLeader:
		if after := w.between(20*time.Millisecond, time.Second); w.one(2) {
			c.views.leaveBehind(after)
		} else {
			c.views.elect(after)
		}
	case faultViewServer:
		i := w.rng.IntN(len(c.views.servers))
		n.during(func() { c.views.setDown(i, true) }, func() { c.views.setDown(i, false) })
	case faultClock:
		if p := m.p; p != nil {
			rate := []float64{0.02, 0.5, 0.9, 1.1, 2}[w.rng.IntN(5)]
			if c.leases { // what leases are made for
				rate = []float64{0.9, 1.1}[w.rng.IntN(2)]
			}
			w.tr("the clock of %s runs at %v", p.name, rate)
			n.during(func() { p.setRate(rate) }, func() { p.setRate(1) })
		}
	case faultGateway:
		if g := c.gateways[w.rng.IntN(len(c.gateways))]; g.p != nil {
			n.during(g.kill, g.start)
		}
	case faultRestart:
		if p := m.p; p != nil {
			n.during(m.stop, func() {
				if m.p == p {
					m.kill() // it takes its time
				}
				m.start()
			})
		}
	case faultUpgrade:
		if c.sync == viewsvc.SyncAlways || c.operator {
			n.upgrade(m)
		}
	case faultVerify, faultScrub:
		c.check(f == faultScrub)
	case faultStrand:
		n.strand()
	case faultForce:
		if c.operator {
			n.outdate(m)
		}
	case faultPutBack, faultCount: // age sees to the former
	}
}

// losesCache tells of faults that take a page cache along. In sync mode flush, where there is no operator, only one member
// at a time meets one: of the others each has everything, and the volume must not end up held. What happens to them
// meanwhile is another matter.
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
	for _, g := range c.gateways {
		put(g.name)
	}
	if w.one(3) {
		for _, v := range c.views.servers {
			put(v)
		}
	} else {
		side[0] = append(side[0], c.views.servers...)
	}
	w.tr("%v and %v are parted", side[0], side[1])
	n.during(func() { n.part(side, c.net.block) }, func() {
		w.tr("%v and %v are parted no more", side[0], side[1])
		n.part(side, c.net.unblock)
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
	for _, g := range c.gateways {
		if clients {
			from = append(from, g.name)
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
	file, width := "data.img", int64(blockdev.BlockSize)
	if w.one(3) {
		file, width = "data.crc", 4
	}
	if err := m.fs.Flip(volumeDir+"/"+file, int64(block)*width+w.rng.Int64N(width), 0x10); err != nil {
		return
	}
	w.tr("a bit of block %d of %s flips in %s", block, m.name, file)
	c.damagedBlocks[block], c.mayFailReads, m.flipped = true, true, true
}
