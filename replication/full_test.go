package replication

import (
	"errors"
	"path"
	"slices"
	"syscall"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// fullGroup is a group whose logs are soon full.
func fullGroup(t *testing.T, replicas int, f func(g *group)) {
	bubble(t, replicas, groupOptions{size: 16 << 20, logBytes: 2 << 20, segBytes: 256 << 10}, func(g *group, _ *memNet) { f(g) })
}

// full has the disk of a replica take no data, or take it again. The log's segments are there already.
func (g *group) full(id viewsvc.ReplicaID, full bool) {
	fs := g.all[id].fs
	if !full {
		fs.Inject(nil)
		return
	}
	fs.Inject(func(op memfs.Op) (e memfs.Effect) {
		if op.Kind == "write" && slices.Contains([]string{"data.img", "data.crc", "regions"}, path.Base(op.Name)) {
			e.Err = syscall.ENOSPC
		}
		return e
	})
}

// writes has a client write block after block until it is told to stop, or a write fails: it returns that write's error, and
// how many succeeded. No write may take longer than a second and a half.
func (g *group) writes(c *client, disk []byte, from uint64, done func() bool) (n uint64, err error) {
	g.t.Helper()
	for ; !done(); n++ {
		q := writeVersion(int((from+n)%3000), from+n+1)
		began := time.Now()
		if o := c.submit(q, patience); o != isCompleted {
			g.t.Fatalf("write %d %s", from+n, o)
		}
		if took := time.Since(began); took > 3*time.Second/2 {
			g.t.Fatalf("write %d took %v", from+n, took)
		}
		if q.Err != nil {
			return n, q.Err
		}
		copy(disk[q.Offset:], q.Data)
		if n > 1e4 {
			g.t.Fatal("the log is never full")
		}
	}
	return n, nil
}

func TestBackupWithAFullDiskLeavesAndComesBackWhenThereIsSpace(t *testing.T) {
	fullGroup(t, 2, func(g *group) {
		c := g.attachTo(g.open(2))
		disk := make([]byte, g.o.size)
		g.full("b", true)
		alone := func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.view.Backups) == 0 }
		n, err := g.writes(c, disk, 0, alone)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // it hears of that
		rep := g.replica("b").Report()
		if rep.Role != viewsvc.RoleLearner || !rep.Full || rep.Error == "" {
			t.Errorf("it reports %+v", rep)
		}
		left := 200
		if _, err := g.writes(c, disk, n, func() bool { left--; return left < 0 }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if !alone() {
			t.Error("a replica without space is a member again")
		}
		g.full("b", false)
		g.open(2)
		g.mustComplete(c, writeVersion(0, 1<<40))
		copy(disk, versionBlock(0, 1<<40))
		if rep := g.replica("b").Report(); rep.Full || rep.Error != "" {
			t.Errorf("there is space again, and it reports %+v", rep)
		}
		g.sameOnAll(disk)
	})
}

func TestPrimaryWithAFullDiskIsReplacedByAMemberWithRoom(t *testing.T) {
	fullGroup(t, 2, func(g *group) {
		c := g.attachTo(g.open(2))
		g.full("a", true)
		var last uint64
		for n := uint64(0); ; n++ {
			q := writeVersion(int(n%3000), n+1)
			if o := c.submit(q, patience); o == isAborted {
				break
			} else if o != isCompleted || q.Err != nil {
				t.Fatalf("write %d %s: %v", n, o, q.Err)
			}
			last = n
		}
		now := g.attachTo(g.open(1))
		q := readBlock(last % 3000)
		g.mustComplete(now, q)
		if now.s.(*session).r.ID() != "b" || blockVersion(q.Data) != last+1 {
			t.Errorf("%s reads version %d, written was %d", now.s.(*session).r.ID(), blockVersion(q.Data), last+1)
		}
		g.full("a", false)
		g.open(2)
	})
}

// Nobody has room: clients are told ENOSPC for what they write, read on, and write again when there is space. Nothing that
// was acknowledged is lost, also if the replica is killed while it is full.
func TestLonePrimaryWithAFullDiskAnswersENOSPC(t *testing.T) {
	for _, killed := range []bool{false, true} {
		fullGroup(t, 1, func(g *group) {
			c := g.attachTo(g.open(1))
			disk := make([]byte, g.o.size)
			g.full("a", true)
			n, err := g.writes(c, disk, 0, func() bool { return false })
			if !errors.Is(err, blockdev.ErrNoSpace) {
				t.Fatalf("after %d writes: %v", n, err)
			}
			began := time.Now()
			if _, err := g.writes(c, disk, n, func() bool { return false }); !errors.Is(err, blockdev.ErrNoSpace) || time.Since(began) > time.Millisecond {
				t.Errorf("the next write is answered %v after %v", err, time.Since(began))
			}
			if killed {
				g.kill("a")
				g.start("a")
				g.full("a", true)
				c = g.attachTo(g.open(1))
			}
			for i := range min(n, 3000) {
				q := readBlock(i)
				g.mustComplete(c, q)
				if want := blockVersion(disk[i*blockdev.BlockSize:]); blockVersion(q.Data) != want {
					t.Fatalf("block %d is version %d, acknowledged was %d", i, blockVersion(q.Data), want)
				}
			}
			g.full("a", false)
			time.Sleep(time.Second)
			for range 100 {
				g.mustComplete(c, writeVersion(int(n%3000), n+1))
				copy(disk[n%3000*blockdev.BlockSize:], versionBlock(int(n%3000), n+1))
				n++
			}
			g.sameOnAll(disk)
		})
	}
}

// A backup whose log is a fraction of the primary's takes what the primary has in flight, though that is more than the log
// holds and the news of its commit comes behind it.
func TestBackupWithAMuchSmallerLogKeepsUp(t *testing.T) {
	o := groupOptions{size: 16 << 20, logBytes: 64 << 20, segBytes: 8 << 20, logOf: map[viewsvc.ReplicaID]int64{"b": 8 << 20}}
	bubble(t, 2, o, func(g *group, n *memNet) {
		c := g.attachTo(g.open(2))
		for range 10 {
			var burst []*blockdev.Request
			for i := range 512 {
				burst = append(burst, write(uint64(i)%256*32<<10, make([]byte, 32<<10)))
			}
			c.s.Submit(burst)
			for i := range burst {
				if o := c.outcome(patience); o != isCompleted {
					t.Fatalf("write %d %s", i, o)
				}
			}
		}
		g.open(2)
	})
}

// A primary that is cut off cannot know whether another has room, and has taken over: an error would be the end of a file
// system that could go on there.
func TestCutOffPrimaryWithAFullDiskAnswersNothing(t *testing.T) {
	bubble(t, 2, groupOptions{size: 16 << 20, logBytes: 2 << 20, segBytes: 256 << 10}, func(g *group, n *memNet) {
		p := g.open(2)
		c := g.attachTo(p)
		g.full("a", true)
		for i := range 100 { // the log has room for them
			g.mustComplete(c, writeVersion(i, 1))
		}
		defer g.pin()()
		n.isolate("a", true)
		g.deafen("a", true)
		for i := range 300 {
			c.s.Submit([]*blockdev.Request{writeVersion(i, 2)})
			time.Sleep(time.Millisecond) // each in a frame of its own
		}
		if o := c.outcome(10 * time.Second); o != stillWaits {
			t.Errorf("a write to a full primary that is cut off %s", o)
		}
		if !p.Report().Full {
			t.Error("it is not full")
		}
		g.full("a", false)
		n.isolate("a", false)
		g.deafen("a", false)
	})
}
