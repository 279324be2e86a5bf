package replication

import (
	"path"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

const aTick = time.Second / TicksPerSecond

// approaching plays a learner that takes so many records a second, and clients who write up to so many in frames of 32, each of
// which takes a moment. It returns how long the learner took to come within joinLag; 0: it did not, in ten minutes.
func approaching(a *approach, learner, clients float64, gap float64) time.Duration {
	frame := 32 / clients
	for t := aTick; t < 10*time.Minute; t += aTick {
		hold := a.tick(uint64(gap), true, 0)
		if gap <= joinLag {
			return t
		}
		written := 32 / (frame + hold.Seconds())
		gap = max(0, gap+(written-learner)*aTick.Seconds())
	}
	return 0
}

func TestClientsWaitALittleForALearnerThatWouldNeverArrive(t *testing.T) {
	for _, learner := range []float64{5_000, 15_000, 29_000} {
		if d := approaching(&approach{}, learner, 30_000, 150_000); d == 0 || d > 2*time.Minute {
			t.Errorf("a learner that takes %.0f records a second of 30000 arrives after %v", learner, d)
		}
	}
	// The last records: what it lacks does not grow, and does not shrink.
	if d := approaching(&approach{}, 30_000, 30_000, 3000); d == 0 || d > 10*time.Second {
		t.Errorf("a learner that stays 3000 records behind arrives after %v", d)
	}
}

func TestNobodyWaitsForALearnerThatComesAlong(t *testing.T) {
	var a approach
	for gap := 500_000.0; gap > 0; gap -= 5000 {
		if hold := a.tick(uint64(gap), true, 0); hold != 0 && gap < 450_000 { // an eighth in a second
			t.Fatalf("frames are held back by %v though it lacks only %.0f records by now", hold, gap)
		}
	}
}

func TestNobodyWaitsWhileTheImageIsCopied(t *testing.T) {
	var a approach
	for i := range uint64(10_000) {
		if hold := a.tick(40_000, false, i<<20); hold != 0 || a.idle != 0 {
			t.Fatalf("held back by %v after %d ticks", hold, i)
		}
	}
}

func TestLearnerThatMakesNoProgressIsGivenUp(t *testing.T) {
	var a approach
	waited := time.Duration(0)
	for i := range uint64(10_000) {
		if hold := a.tick(40_000+i, true, 0); hold > holdMax {
			t.Fatalf("a frame is held back by %v", hold)
		} else if hold > 0 {
			a.idle += aTick // as Replica.hold does
		}
		if a.idle < holdAll {
			waited += aTick
		}
	}
	if waited > holdAll+5*time.Second {
		t.Errorf("writes were held back for %v", waited)
	}
}

// A log of a few MiB is used up within a tick. Seen to fail: hold that goes by what the last tick found alone.
func TestLearnerInDangerIsSeenWithTheNextFrame(t *testing.T) {
	g := smallLog(t, 1)
	w := newBlockWriter(g)
	r := g.open(1)
	stop := w.background()
	g.outgrow(w, 1)
	stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.store.Marks()
	r.streams = append(r.streams, &stream{r: r, peer: "learner", up: true, next: m.End + 1})
	defer func() { r.streams = nil }()
	s := r.streams[0]
	if d := r.hold(); d != 0 || r.holding != 0 {
		t.Errorf("held back by %v for a learner that lacks nothing", d)
	}
	if s.next = m.First; r.hold() != holdMax || r.inlinable() {
		t.Errorf("held back by %v for one that needs the oldest part of the log", r.hold())
	}
	if s.near.idle = holdAll; r.hold() != 0 {
		t.Errorf("held back by %v for one that was given up", r.hold())
	}
}

// P5: recruiting does not pause writes, and it ends. A learner that stands still while clients write has them slowed down,
// smoothly; they go on, and are let go when it has joined.
func TestWritesAreHeldBackForALearnerThatDoesNotArrive(t *testing.T) {
	g := newGroup(t, groupOptions{replicas: 2, size: 4 << 20, logBytes: 64 << 20, segBytes: 8 << 20})
	g.open(2)
	g.stop("b")
	r := g.open(1)
	holding := func() time.Duration {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.holding
	}
	c, err := dialReplica(r, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() { // until ended is closed
		defer c.s.Close()
		burst := make([]*blockdev.Request, 32) // few bytes: it is records that the learner lacks
		for i := range burst {
			burst[i] = &blockdev.Request{Op: blockdev.OpWriteZeroes, Offset: uint64(2*i) * blockdev.BlockSize, Length: blockdev.BlockSize}
		}
		for beat := time.NewTicker(10 * time.Millisecond); ; <-beat.C {
			select {
			case <-ended:
				beat.Stop()
				return
			default:
			}
			if !c.try(burst...) {
				t.Error("the primary was lost")
				return
			}
		}
	})
	defer load.Wait()
	defer close(ended)
	release := make(chan struct{})
	released := sync.OnceFunc(func() { close(release) })
	defer released()
	g.all["b"].fs.BeforeEach(func(op memfs.Op) { // its first answer gets through
		if l := r.Report().Learners; op.Kind == "sync" && len(l) > 0 && l[0].Match > 0 {
			<-release
		}
	})
	g.start("b")
	g.await("writes that are held back for want of progress", func(viewsvc.View) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		s := r.streamTo("b")
		return r.holding > 0 && s != nil && s.near.effort > 1
	})
	if d := holding(); d > holdMax {
		t.Errorf("each frame is held back by %v", d)
	}
	before := r.store.Marks().Committed
	g.await("writes that go on", func(viewsvc.View) bool { return r.store.Marks().Committed > before+100 })
	released()
	g.open(2)
	g.await("writes that are let go", func(viewsvc.View) bool { return holding() == 0 })
}

// A learner that makes its copy whole applies and syncs, for as long as its disk takes, and reads nothing from its socket. What
// is written meanwhile stays in the log: were it queued for the socket, clients would be held back for it.
func TestNothingIsQueuedForALearnerThatMakesItsCopyWhole(t *testing.T) {
	outageGroup(t, func(g *group, n *memNet) {
		disk, release := g.halfCopied()
		hung, free := make(chan struct{}), make(chan struct{})
		goOn := sync.OnceFunc(func() { close(free) })
		defer goOn()
		st := g.replica("b").store
		var once sync.Once
		g.all["b"].fs.Inject(func(op memfs.Op) (e memfs.Effect) {
			if op.Kind == "sync" && path.Base(op.Name) == "data.img" && st.Copying() {
				once.Do(func() { close(hung) })
				e.Hang = free
			}
			return e
		})
		release()
		<-hung
		r := g.replica("a")
		c := g.attachTo(r)
		for i := range 10 {
			outage{blocks: 16, stride: 1, times: 1, length: 1}.writes(g, c, disk)
			time.Sleep(10 * inflightPollTime)
			r.mu.Lock()
			direct := r.streamTo("b").direct
			r.mu.Unlock()
			if direct {
				g.t.Fatalf("after %d looks the learner is sent frames as they are made", i)
			}
		}
		goOn()
		g.open(2)
		g.sameOnAll(disk)
	})
}
