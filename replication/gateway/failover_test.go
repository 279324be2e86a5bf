package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

func TestClientSeesAFailoverUnderLoadAsAPause(t *testing.T) {
	const clients, writers, rounds = 3, 8, 150
	c := startCluster(t, 3, nil)
	stop := make(chan struct{})
	var failovers int
	var moving sync.WaitGroup
	moving.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(15 * time.Millisecond):
			}
			old, next := c.nodes[(i-1)%3], i%3
			switch i % 3 {
			case 0: // the old one steps down
				old.depose()
				c.moveTo(next)
			case 1: // it carries out what it gets and answers nothing, then hangs up
				old.set(func() { old.mute = true })
				select {
				case <-stop:
				case <-time.After(3 * time.Millisecond):
				}
				old.depose()
				c.moveTo(next)
				old.set(func() { old.mute = false })
			case 2: // it does not notice
				c.moveTo(next)
				old.set(func() { old.primary = false })
			}
			failovers++
		}
	})
	var load sync.WaitGroup
	for k := range clients {
		d := c.dial()
		for w := range writers {
			load.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(k), uint64(w)))
				base := int64(k*writers+w) * 64 << 10
				got := make([]byte, blockdev.BlockSize)
				for i := range rounds {
					want := page(fmt.Sprintf("client %d writer %d round %d;", k, w, i))
					off := base + rnd.Int64N(16)*blockdev.BlockSize
					if _, err := d.WriteAt(want, off); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					if i%10 == 0 {
						if err := d.Flush(); err != nil {
							t.Errorf("flush: %v", err)
							return
						}
					}
					if _, err := d.ReadAt(got, off); err != nil {
						t.Errorf("read: %v", err)
						return
					}
					if !bytes.Equal(got, want) {
						t.Errorf("read %.40q, wrote %.40q", got, want)
						return
					}
				}
			})
		}
	}
	load.Wait()
	close(stop)
	moving.Wait()
	if failovers < 3 {
		t.Skipf("the load was over after %d failovers", failovers)
	}
}

// TestPrimarysErrorsReachTheClient is G1, the other way round.
func TestPrimarysErrorsReachTheClient(t *testing.T) {
	c := startCluster(t, 1, nil)
	c.disk.mu.Lock()
	c.disk.failing = map[uint64]error{0: blockdev.ErrIO, 4096: blockdev.ErrNoSpace}
	c.disk.mu.Unlock()
	d := c.dial()
	if _, err := d.ReadAt(page("x"), 0); !errors.Is(err, blockdev.ErrIO) {
		t.Errorf("read of a bad block: %v, want ErrIO", err)
	}
	if _, err := d.WriteAt(page("x"), 4096); !errors.Is(err, blockdev.ErrNoSpace) {
		t.Errorf("write without room: %v, want ErrNoSpace", err)
	}
	if _, err := d.WriteAt(page("x"), 8192); err != nil {
		t.Errorf("the connection is not usable after an error: %v", err)
	}
	if n := c.count(EventDown); n != 0 {
		t.Errorf("%d connections were lost", n)
	}
}

// TestReplayKeepsTheOrderOfArrival is G2: reads, writes and flushes, before younger ones, which come all the time.
func TestReplayKeepsTheOrderOfArrival(t *testing.T) {
	const before, during = 180, 70 // fewer than one client may have in flight
	c := startCluster(t, 2, nil)
	c.nodes[0].set(func() { c.nodes[0].mute = true })
	c.nodes[1].set(func() { c.nodes[1].arrived = []blockdev.Request{} })
	s := c.submitter()
	var all []*blockdev.Request
	for i := range uint64(before + during) {
		r := write(i, fmt.Sprintf("number %d;", i))
		switch i % 4 {
		case 2:
			r = read(i)
		case 3:
			r = &blockdev.Request{Op: blockdev.OpFlush}
		}
		all = append(all, r)
	}
	s.send(all[:before]...)
	eventually(t, "the first primary has them", func() bool { return len(c.nodes[0].seen()) == before })
	c.nodes[0].kill()
	var young sync.WaitGroup
	young.Go(func() {
		for _, r := range all[before:] {
			s.send(r)
		}
	})
	c.moveTo(1)
	young.Wait()
	for _, r := range all {
		s.await(t, r)
	}
	got := c.nodes[1].seen()
	if len(got) != len(all) {
		t.Fatalf("the new primary got %d requests, want %d", len(got), len(all))
	}
	for i, r := range all {
		if got[i].Op != r.Op || got[i].Offset != r.Offset {
			t.Fatalf("request %d is %v at %d, want %v at %d", i, got[i].Op, got[i].Offset, r.Op, r.Offset)
		}
	}
	if ids := slices.Concat(c.nodes[0].sessions(), c.nodes[1].sessions()); len(ids) != 2 || ids[0].Name != ids[1].Name || ids[1].Generation <= ids[0].Generation {
		t.Errorf("attachments %v, want one session with growing generations", ids)
	}
}

// TestOverlappingWritesAreNeverWithAPrimaryTogether is G3, over two connections of one client.
func TestOverlappingWritesAreNeverWithAPrimaryTogether(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes[0]
	n.set(func() { n.paused = true })
	a, b := c.submitter(), c.submitter()
	first, second, third, apart := write(7, "first;"), write(7, "second;"), write(7, "third;"), write(8, "apart;")
	a.send(first)
	eventually(t, "the first arrived", func() bool { return len(n.seen()) == 1 })
	b.send(second, third, apart, read(7))
	eventually(t, "the others that may go arrived", func() bool { return len(n.seen()) == 3 })
	for _, r := range n.seen()[1:] {
		if r.Op == blockdev.OpWrite && r.Offset != apart.Offset {
			t.Errorf("an overlapping write is with the primary: %.10q", r.Data)
		}
	}
	n.set(func() { n.paused = false })
	for _, r := range []*blockdev.Request{second, third, apart} {
		b.await(t, r)
	}
	a.await(t, first)
	if got := c.disk.block(7*4096, 12); got != "third;third;" {
		t.Errorf("the disk has %q, want the third", got)
	}
}

func TestStuckPrimaryIsLeftWhenThereIsNews(t *testing.T) {
	c := startCluster(t, 2, nil)
	c.nodes[0].set(func() { c.nodes[0].paused = true })
	s := c.submitter()
	w, r := write(1, "w;"), read(2)
	s.send(w, r)
	eventually(t, "the stuck primary has them", func() bool { return len(c.nodes[0].seen()) == 2 })
	c.moveTo(1)
	s.await(t, w)
	s.await(t, r)
}

// TestOriginalAfterItsReplay is hazard 2: W(A) is stuck at a paused primary, W(A) is replayed and answered, W(B) is
// answered, the old primary goes on. Fencing by generation (G6) decides what is on the disk then.
func TestOriginalAfterItsReplay(t *testing.T) {
	for _, unfenced := range []bool{true, false} {
		t.Run(fmt.Sprintf("unfenced=%v", unfenced), func(t *testing.T) {
			c := startCluster(t, 2, nil)
			c.disk.unfenced = unfenced
			old := c.nodes[0]
			old.set(func() { old.paused = true })
			s := c.submitter()
			a, b := write(3, "A"), write(3, "B")
			s.send(a)
			eventually(t, "the old primary has A", func() bool { return len(old.seen()) == 1 })
			c.moveTo(1)
			s.await(t, a)
			s.send(b)
			s.await(t, b)
			old.set(func() { old.paused = false })
			old.srv.Close() // returns when Submit has
			want := "B"
			if unfenced {
				want = "A" // the harm is real
			}
			if got := c.disk.block(3*4096, 1); got != want {
				t.Errorf("the disk has %s, want %s", got, want)
			}
		})
	}
}

// hangUp ends a client's connection so that the gateway cannot take it for an orderly end.
func hangUp(tb testing.TB, nc net.Conn) {
	tb.Helper()
	if err := nc.(*net.TCPConn).SetLinger(0); err != nil {
		tb.Fatal(err)
	}
	nc.Close()
}

// TestAbandonedWriteKeepsItsRangeUntilItIsFenced is G5: the client of W(A) is gone; the next one's W(B) must not be
// answered before W(A) cannot be carried out any more.
func TestAbandonedWriteKeepsItsRangeUntilItIsFenced(t *testing.T) {
	c := startCluster(t, 2, func(o *Options) { o.Listen = "127.0.0.1:0" })
	old := c.nodes[0]
	old.set(func() { old.paused = true })
	nc, err := net.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nbd.NewConn(t.Context(), nc, nbd.ClientOptions{Export: "vol0"})
	if err != nil {
		t.Fatal(err)
	}
	first := &submitter{conn: conn, done: make(map[*blockdev.Request]error)}
	conn.Start(first)
	first.send(write(3, "A"), write(3, "a"), read(3))
	eventually(t, "the old primary has A", func() bool { return len(old.seen()) > 0 })

	// No node takes it: no fence, no release.
	old.set(func() { old.primary = false })
	next := c.nodes[1]
	next.set(func() { next.barred, next.arrived = old.ids[0].Name, []blockdev.Request{} })
	hangUp(t, nc)
	eventually(t, "the first session has ended", func() bool { return c.count(EventFencing) == 1 })
	second := c.submitter()
	b, apart := write(3, "B"), write(4, "apart")
	second.send(b, apart)

	c.moveTo(1)
	second.await(t, apart)
	for _, r := range next.seen() {
		if r.Offset == b.Offset {
			t.Error("B is with the primary before A is fenced")
		}
	}
	next.set(func() { next.barred = "" })
	second.await(t, b)
	old.set(func() { old.paused = false })
	old.srv.Close()
	if got := c.disk.block(3*4096, 1); got != "B" {
		t.Errorf("the disk has %s, want B", got)
	}
	conn.Close()
	eventually(t, "the session is forgotten", func() bool { c.gw.mu.Lock(); defer c.gw.mu.Unlock(); return c.gw.sessions == 1 })
}
