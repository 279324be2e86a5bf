package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"lockstep/blockdev"
	"lockstep/replication"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// The phases of a run, on the world's clock.
const (
	bootTime   = 400 * time.Millisecond
	calmTime   = 500 * time.Millisecond // load goes on when the storm is over
	healTime   = 60 * time.Second       // until everything has to be well again
	volumeSize = 4 << 20
)

// cluster is the simulated system and what checks it.
type cluster struct {
	w        *world
	net      *network
	views    *views
	machines []*machine
	gateways []*gatewayProc
	clients  []*client
	history  *history
	nemesis  *nemesis

	// Of this seed.
	copies        int
	sessions      int // that clients have had
	logBytes      int64
	segmentBytes  int64
	diskTime      time.Duration
	jitter        time.Duration
	reconnect     time.Duration // a client's pause between two tries
	applyEvery    time.Duration
	lazy          time.Duration // nodes leave what clients send unread for so long, now and then
	sync          viewsvc.SyncMode
	minCopies     int
	operator      bool // somebody who accepts losses is there
	claims        bool // some clients want the volume for themselves
	claim         viewsvc.Claim
	alone         alone // who has it for himself; none: nobody, as far as is known
	leases        bool  // clocks are good enough for them
	stormTime     time.Duration
	load          bool
	mayFailReads  bool // a block was damaged
	damagedBlocks map[uint64]bool
	ages          bool        // disks are put back
	aged          *machine    // its disk was put back, and has not caught up since
	lostBlocks    bool        // some of which no good copy is left
	runs          [][2]uint64 // of blocks that clients use
	enlarges      *rand.Rand  // decides when the volume is to become larger; nil: never
	acked         wal.LSN     // newest record that is known to be acknowledged, and its epoch
	ackedEpoch    wal.Epoch
	ackedIn       viewsvc.ViewNum                         // tenure in which it was
	openIn        viewsvc.ViewNum                         // newest tenure in which a primary opened
	minAcked      wal.LSN                                 // commit point when writes were acknowledged last
	copying       map[viewsvc.ReplicaID]viewsvc.ReplicaID // learners that are copied, and by whom
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x10c557e9)) }

// newCluster makes the system of a seed.
func newCluster(seed uint64, like profile, trace func(string)) *cluster {
	w := &world{rng: newRand(seed), trace: trace}
	c := &cluster{w: w, history: &history{}, damagedBlocks: map[uint64]bool{}, copying: map[viewsvc.ReplicaID]viewsvc.ReplicaID{}}
	c.net = &network{w: w, blocked: map[hostPair]int{}, slow: map[hostPair]time.Duration{}, accept: c.accept}
	if c.copies = 2 + w.rng.IntN(2); like.three {
		c.copies = 3
	}
	c.segmentBytes = 192 << 10
	c.logBytes = c.segmentBytes * int64(3+w.rng.IntN(3))
	c.diskTime = []time.Duration{5, 50, 400, 3000}[w.rng.IntN(4)] * time.Microsecond
	c.net.reach = []time.Duration{200, 500, 2000, 20000}[w.rng.IntN(4)] * time.Microsecond
	c.jitter = []time.Duration{0, 0, 100, 3000}[w.rng.IntN(4)] * time.Microsecond
	c.reconnect = []time.Duration{1, 5, 40}[w.rng.IntN(3)] * time.Millisecond
	c.applyEvery = []time.Duration{5, 50, 400, 2000}[w.rng.IntN(4)] * time.Millisecond
	c.lazy = []time.Duration{0, 5, 150}[w.rng.IntN(3)] * time.Millisecond
	c.sync = viewsvc.SyncAlways
	if w.one(4) {
		c.sync = viewsvc.SyncFlush
		w.stats.note(flushMode)
	}
	c.minCopies = 1
	if w.one(4) {
		c.minCopies = 2
	}
	c.operator = w.one(2)
	c.claims = w.one(8) || like.claims
	if c.leases = w.one(2) || like.leases; c.leases {
		w.stats.note(leasedRead)
	}
	c.stormTime = w.between(time.Second, 6*time.Second)
	c.views = newViews(w, c.net, 1+2*w.rng.IntN(2))
	c.views.onView = c.checkView
	c.views.onGrown = c.grown
	c.views.onClaim = c.claimed
	c.views.onBelow = func(text string) {
		if c.aged == nil {
			w.fail("a member that nothing was done to is below the floor: %s", text)
		}
	}
	c.runs = slices.Clone(hotRuns[:])
	if seed%growingSeeds == 0 { // the others are as they would be without
		c.enlarges = newRand(^seed)
	}
	c.views.loss = []int{1000, 100, 8}[w.rng.IntN(3)]
	for i := range c.copies + w.rng.IntN(3) {
		c.machines = append(c.machines, newMachine(c, fmt.Sprintf("n%d", i+1)))
	}
	c.nemesis = newNemesis(c, like.faults)
	if like.faults == nil && seed%agingSeeds == 0 || slices.Contains(like.faults, faultPutBack) { // likewise
		c.ages = true
		c.stormTime += agingTime
	}
	return c
}

// accept is the machine's that is called.
func (c *cluster) accept(host, port string, e *endpoint) acceptance {
	for _, m := range c.machines {
		if m.name == host {
			return m.accept(port, e)
		}
	}
	return vanished
}

// run plays a seed and returns what went wrong, "" if nothing did.
func (c *cluster) run() string {
	w := c.w
	for _, m := range c.machines {
		m.start()
	}
	c.create()
	c.connect()
	c.load = true
	w.run(bootTime, nil)
	if c.operator {
		c.operate()
	}
	if c.enlarges != nil {
		c.enlarge()
	}
	c.nemesis.begin()
	w.run(bootTime+c.stormTime, nil)
	c.nemesis.heal()
	w.run(w.now+calmTime, nil)
	c.load = false
	deadline := w.now + healTime
	well := false
	for w.bad == "" && w.now < deadline {
		if c.claims {
			c.detachAll()
		}
		w.run(w.now+100*time.Millisecond, nil)
		if well = c.well(); well {
			break
		}
	}
	if w.bad == "" && !well {
		w.fail("not well again after %v: %s", healTime, c.state())
	}
	if w.bad == "" && (len(c.damagedBlocks) > 0 || w.one(4)) {
		if why := c.settleDamage(); why != "" {
			w.fail("%s: %s", why, c.state())
		}
	}
	c.finalReads()
	if w.bad == "" {
		c.compare()
	}
	for _, o := range c.history.ops {
		if o.ret != 0 {
			w.stats.acks++
		}
	}
	if w.bad == "" {
		if b := c.history.check(); b != nil {
			w.fail("the history of sector %d is not linearizable%s", b.sector, b.keep())
		} else if why := c.history.unflushed(); why != "" {
			w.fail("%s", why)
		}
	}
	c.end()
	return w.bad
}

// connect starts the gateways and their clients.
func (c *cluster) connect() {
	w := c.w
	for i := range 2 + w.rng.IntN(2) {
		g := &gatewayProc{c: c, name: fmt.Sprintf("g%d", i+1), direct: i > 0 && w.one(3)}
		for range 1 + w.rng.IntN(2) {
			k := &client{g: g, no: len(c.clients), depth: 1 + w.rng.IntN(6), think: w.between(3*time.Millisecond, 80*time.Millisecond)}
			k.named = !g.direct && w.one(3)
			k.alone = c.claims && !g.direct && w.one(2)
			k.rude = []int{0, 50, 400}[w.rng.IntN(3)]
			g.clients = append(g.clients, k)
			if c.clients = append(c.clients, k); g.direct {
				break
			}
		}
		c.gateways = append(c.gateways, g)
		g.start()
	}
}

// end ends everything, so that a run leaves nothing behind.
func (c *cluster) end() {
	for _, m := range c.machines {
		m.end(true)
	}
	c.w.shut()
}

// held tells whether the volume's primary may not open by itself.
func (c *cluster) held() bool {
	m := c.byReplica(c.views.current().Primary)
	return c.sync == viewsvc.SyncFlush && m != nil && m.replica != nil && m.replica.Report().Role == viewsvc.RoleHeld
}

// create creates the volume, as soon as somebody leads.
func (c *cluster) create() {
	c.w.after(100*time.Millisecond, func() {
		if len(c.views.history) > 0 {
			return
		}
		c.create()
		if c.views.lead == nil {
			return
		}
		cmd, err := c.views.lead.mon.PlanCreate(viewsvc.Volume{ID: volumeID, Name: volumeName, Size: volumeSize, Copies: c.copies, MinCopies: c.minCopies, Sync: c.sync})
		if err != nil {
			return
		}
		c.views.commit(cmd, func(viewsvc.Result, error) {})
	})
}

// byReplica finds the machine that has a replica now.
func (c *cluster) byReplica(r viewsvc.ReplicaID) *machine {
	for _, m := range c.machines {
		if m.copies > 0 && !m.empty && r == m.replicaID() {
			return m
		}
	}
	return nil
}

// checkView asserts I2 and what else the history of views promises.
func (c *cluster) checkView(kind viewsvc.Kind, v viewsvc.View) {
	if kind == viewsvc.KindForce {
		c.lose(true)
		c.w.stats.note(forced)
	}
	old := c.views.current()
	w := c.w
	switch {
	case v.Num != old.Num+1:
		w.fail("V: view %d follows view %d", v.Num, old.Num)
	case (v.DataLossGen > old.DataLossGen) != (kind == viewsvc.KindForce):
		w.fail("V8: view %d by %s counts %d losses, the one before %d", v.Num, kind, v.DataLossGen, old.DataLossGen)
	case kind == viewsvc.KindForce:
	case old.Num > 0 && !old.Has(v.Primary):
		w.fail("I2: %s, primary of view %d, was no member of the one before", v.Primary, v.Num)
	case v.Tenure != old.Tenure && v.Tenure != v.Num, v.Tenure == old.Tenure && v.Primary != old.Primary:
		w.fail("V: tenure %d of %s in view %d after tenure %d of %s", v.Tenure, v.Primary, v.Num, old.Tenure, old.Primary)
	}
	for _, r := range v.Members() {
		if m := c.byReplica(r); kind != viewsvc.KindForce && !old.Has(r) && m != nil && m.replica != nil && m.replica.ID() == r && m.store.Copying() {
			w.fail("I10: %s, whose copy is incomplete, is a member of view %d", m.name, v.Num)
		}
	}
	if old.Num > 0 && v.Primary != old.Primary {
		w.stats.note(promoted)
		c.nemesis.replaced(old)
	} else if old.Num > 0 && v.Tenure != old.Tenure {
		w.stats.note(resumed)
	}
}

// mayLose tells whether a machine's replica can be missed: another member of the newest view has a disk that nothing
// was done to, and no view without it is on its way.
func (c *cluster) mayLose(m *machine) bool {
	v := c.views.current()
	mine := m.replicaID()
	if v.Num == 0 || c.mayFailReads && !m.flipped {
		return false // it may have the only good copy of a damaged block
	}
	if c.views.underWay > 0 {
		return false
	}
	if !v.Has(mine) {
		return true
	}
	for _, r := range v.Members() {
		if o := c.byReplica(r); r != mine && o != nil && !o.flipped && !c.forgetful(o) && (o.store == nil || o.store.Err() == nil) {
			return true
		}
	}
	return false
}

// failed is an error that a client was given.
func (c *cluster) failed(o *op, err error) {
	if c.mayFailReads && errors.Is(err, blockdev.ErrIO) || errors.Is(err, blockdev.ErrNoSpace) { // noSpace has looked at that
		return
	}
	c.w.fail("%v failed: %v", o, err)
}

// well tells whether the volume has all its members and everything was answered.
func (c *cluster) well() bool {
	if !c.complete() || c.growing() || c.claim.Owner != "" {
		return false
	}
	for _, g := range c.gateways {
		for _, s := range g.sessions {
			if s.ready && (len(s.asked) > 0 || !s.live) {
				return false
			}
		}
	}
	var end uint64
	for i, r := range c.views.current().Members() {
		rep := c.byReplica(r).replica.Report()
		if i == 0 {
			end = rep.LogEnd
		}
		if rep.LogEnd != end || rep.Commit != end {
			return false
		}
	}
	return true
}

// complete tells whether all members of the newest view are there and know it, and all that there should be are members.
func (c *cluster) complete() bool {
	v := c.views.current()
	if len(v.Members()) < c.copies {
		return false
	}
	for i, r := range v.Members() {
		m := c.byReplica(r)
		if m == nil || m.replica == nil {
			return false
		}
		rep := m.replica.Report()
		if rep.View != v.Num || i == 0 && rep.Role != viewsvc.RolePrimary || i > 0 && rep.Role != viewsvc.RoleBackup || rep.Suspect {
			return false
		}
	}
	return true
}

func (c *cluster) state() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "view %+v", c.views.current())
	for _, m := range c.machines {
		if m.replica != nil {
			r := m.replica.Report()
			fmt.Fprintf(&b, "; %s %s view %d end %d commit %d applied %d %s", m.name, r.Role, r.View, r.LogEnd, r.Commit, r.Applied, r.Error)
		} else {
			fmt.Fprintf(&b, "; %s has no replica (process %v)", m.name, m.p != nil)
		}
	}
	for _, k := range c.clients {
		if k.s != nil {
			fmt.Fprintf(&b, "; c%d waits for %d, attached %v", k.no, len(k.s.asked), k.s.live)
		}
	}
	return b.String()
}

// finalReads reads all that was ever written.
func (c *cluster) finalReads() {
	w := c.w
	if w.bad != "" {
		return
	}
	if s := c.clients[0].s; s != nil && s.size < c.blocks() {
		s.close() // it comes back to a larger disk
		c.clients[0].s = nil
	}
	deadline := w.now + healTime
	for c.clients[0].s == nil && w.bad == "" && w.now < deadline { // it has just hung up
		if c.claims { // a claim may have been made late, of which nobody had an answer
			c.detachAll()
		}
		w.run(w.now+20*time.Millisecond, nil)
	}
	s := c.clients[0].s
	if s == nil {
		w.fail("the client of the last reads is not let in")
		return
	}
	var reads []*op
	for _, run := range c.runs {
		for b := run[0]; b < run[0]+run[1]; b++ {
			reads = append(reads, s.k.read(b))
		}
	}
	s.submit(reads)
	for w.bad == "" && len(s.asked) > 0 && w.now < deadline {
		if c.claims && c.claim.Owner != "" { // likewise: it has ended the session, or keeps it out
			c.detachAll()
			w.run(w.now+calmTime, nil)
			if c.clients[0].s == s {
				s.close()
				c.clients[0].s = nil
			}
			c.finalReads()
			return
		}
		w.run(w.now+20*time.Millisecond, nil)
	}
	if len(s.asked) > 0 {
		w.fail("the last reads are not answered")
	}
}

// compare asserts I12: the members hold the same bytes where anything was ever written, and around it.
func (c *cluster) compare() {
	v := c.views.current()
	var want, got [blockdev.BlockSize]byte
	for _, run := range c.runs {
		for b := max(run[0], 1) - 1; b <= run[0]+run[1] && b < c.blocks(); b++ {
			for i, r := range v.Members() {
				m := c.byReplica(r)
				excused := c.lostBlocks && c.damagedBlocks[b]
				if err := m.store.Read(b, got[:]); err != nil && !excused {
					c.w.fail("I12: %s: block %d: %v", m.name, b, err)
					return
				}
				if i == 0 {
					want = got
				} else if want != got && !excused {
					c.w.fail("I12: %s and %s differ in block %d", v.Primary, r, b)
					return
				}
			}
		}
	}
}

var _ replication.Runtime = (*proc)(nil)
