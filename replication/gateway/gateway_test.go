package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/viewsvc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// page is a block that can be recognised.
func page(text string) []byte {
	return []byte(strings.Repeat(text, blockdev.BlockSize/len(text)+1)[:blockdev.BlockSize])
}

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
	c.disk.failing = map[uint64]error{0: blockdev.ErrIO, 4096: blockdev.ErrNoSpace}
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

// submitter sends requests without waiting for each.
type submitter struct {
	conn *nbd.Conn

	// mu guards everything below.
	mu     sync.Mutex
	done   map[*blockdev.Request]error
	closed bool
}

func (c *cluster) submitter() *submitter {
	c.tb.Helper()
	conn, err := nbd.Dial(c.tb.Context(), c.addr, nbd.ClientOptions{Export: "vol0"})
	if err != nil {
		c.tb.Fatal(err)
	}
	s := &submitter{conn: conn, done: make(map[*blockdev.Request]error)}
	conn.Start(s)
	c.tb.Cleanup(func() {
		conn.Close()
		eventually(c.tb, "the client's connection has ended", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closed })
	})
	return s
}

func (s *submitter) Complete(done []*blockdev.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range done {
		s.done[r] = r.Err
	}
}

func (s *submitter) Closed(error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *submitter) send(rs ...*blockdev.Request) { s.conn.Submit(rs) }

func (s *submitter) answered(r *blockdev.Request) (error, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err, ok := s.done[r]
	return err, ok
}

func (s *submitter) await(tb testing.TB, r *blockdev.Request) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("%v at %d is answered", r.Op, r.Offset), func() bool { _, ok := s.answered(r); return ok })
	if err, _ := s.answered(r); err != nil {
		tb.Fatalf("%v at %d: %v", r.Op, r.Offset, err)
	}
}

func write(block uint64, text string) *blockdev.Request {
	return &blockdev.Request{Op: blockdev.OpWrite, Offset: block * blockdev.BlockSize, Length: blockdev.BlockSize, Data: page(text)}
}

func read(block uint64) *blockdev.Request {
	return &blockdev.Request{Op: blockdev.OpRead, Offset: block * blockdev.BlockSize, Length: blockdev.BlockSize, Data: make([]byte, blockdev.BlockSize)}
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

func TestFrontDisconnectReleasesEverything(t *testing.T) {
	c := startCluster(t, 1, nil)
	for range 5 {
		d := c.dial()
		if _, err := d.WriteAt(page("x"), 0); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	eventually(t, "the volume is not in use", func() bool {
		c.gw.mu.Lock()
		defer c.gw.mu.Unlock()
		return c.gw.sessions == 0 && len(c.gw.volumes) == 0
	})
	eventually(t, "the node has no session", func() bool {
		c.nodes[0].mu.Lock()
		defer c.nodes[0].mu.Unlock()
		return len(c.nodes[0].clients) == 0
	})
}

func TestTimeoutGivesAnErrorAndKeepsTheSessionUsable(t *testing.T) {
	c := startCluster(t, 2, func(o *Options) { o.Timeout = 4 * minTimeout })
	old := c.nodes[0]
	old.set(func() { old.paused = true })
	s := c.submitter()
	w, again := write(3, "A"), write(3, "B")
	s.send(w)
	eventually(t, "the write failed", func() bool { _, ok := s.answered(w); return ok })
	if err, _ := s.answered(w); !errors.Is(err, blockdev.ErrIO) {
		t.Fatalf("write: %v, want ErrIO", err)
	}
	// The range is taken until the session is attached again, and free then.
	s.send(again)
	c.moveTo(1)
	s.await(t, again)
	old.set(func() { old.paused = false })
	old.srv.Close()
	if got := c.disk.block(3*4096, 1); got != "B" {
		t.Errorf("the disk has %q, want B", got)
	}
	if c.count(EventExpired) != 1 {
		t.Error("not one request expired")
	}
}

func TestUnknownVolume(t *testing.T) {
	c := startCluster(t, 1, nil)
	for _, name := range []string{"", "nobody", "vol0?session=x&generation=1"} {
		if _, err := nbd.OpenDisk(t.Context(), c.addr, nbd.ClientOptions{Export: name}); !errors.Is(err, nbd.ErrUnknownExport) {
			t.Errorf("open %q: %v, want ErrUnknownExport", name, err)
		}
	}
}

func TestListNamesAllVolumes(t *testing.T) {
	c := startCluster(t, 1, nil)
	c.views.change("other", func(st *viewsvc.VolumeStatus) { st.Volume.Name = "other" })
	c.views.change("leaving", func(st *viewsvc.VolumeStatus) { st.Volume.Name, st.Deleting = "leaving", true })
	list, err := nbd.List(t.Context(), c.addr, nbd.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"other", "vol0"}) {
		t.Errorf("listed %q", names)
	}
}

// TestDeletedVolumeEndsItsSessions is G10: deleted, gone, or another one under the same name.
func TestDeletedVolumeEndsItsSessions(t *testing.T) {
	for name, delete := range map[string]func(v *fakeViews){
		"deleting": func(v *fakeViews) {
			v.change("vol0", func(st *viewsvc.VolumeStatus) { st.Deleting = true })
		},
		"gone": func(v *fakeViews) { v.remove("vol0") },
		"other": func(v *fakeViews) {
			v.change("vol0", func(st *viewsvc.VolumeStatus) { st.Volume.ID = "another" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, 1, nil)
			n := c.nodes[0]
			n.set(func() { n.mute = true })
			s := c.submitter()
			w := write(1, "lost with its disk;")
			s.send(w)
			eventually(t, "the primary has it", func() bool { return len(n.seen()) == 1 })
			delete(c.views)
			eventually(t, "the client is disconnected", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closed })
			if err, ok := s.answered(w); ok {
				t.Errorf("the write was answered: %v", err)
			}
			eventually(t, "everything is released", func() bool { c.gw.mu.Lock(); defer c.gw.mu.Unlock(); return c.gw.sessions == 0 })
		})
	}
}

// TestDeadViewServiceStopsNobody is P4, for clients that are there and for new ones.
func TestDeadViewServiceStopsNobody(t *testing.T) {
	c := startCluster(t, 1, nil)
	d := c.dial()
	if _, err := d.WriteAt(page("before"), 0); err != nil {
		t.Fatal(err)
	}
	c.views.setDown(true)
	eventually(t, "it is noticed", func() bool { return c.count(EventViewsDown) > 0 })
	if _, err := d.WriteAt(page("after"), 0); err != nil {
		t.Error(err)
	}
	second := c.dial()
	if _, err := second.WriteAt(page("new client"), 0); err != nil {
		t.Error(err)
	}
	d.Close()
	second.Close()
	eventually(t, "the volume is idle", func() bool { c.gw.mu.Lock(); defer c.gw.mu.Unlock(); return len(c.gw.volumes) == 0 })
	if _, err := c.dial().WriteAt(page("another"), 0); err != nil {
		t.Error(err)
	}
	eventually(t, "it is noticed again", func() bool { return c.count(EventViewsDown) > 1 })
	c.views.setDown(false)
	eventually(t, "its return is noticed", func() bool { return c.count(EventViewsUp) > 0 })
}

// TestOldNewsDoNotMoveARoute is G7: neither a view server left behind, nor one that does not know the address yet.
func TestOldNewsDoNotMoveARoute(t *testing.T) {
	c := startCluster(t, 2, nil)
	c.moveTo(1)
	d := c.dial()
	if _, err := d.WriteAt(page("x"), 0); err != nil {
		t.Fatal(err)
	}
	for _, edit := range []func(*viewsvc.VolumeStatus){
		func(st *viewsvc.VolumeStatus) { st.View.Num, st.View.Tenure, st.View.Primary = 1, 1, "n0" },
		func(st *viewsvc.VolumeStatus) {
			st.View.Num, st.View.Tenure, st.View.Primary = 2, 2, "n1"
			for i := range st.Peers {
				st.Peers[i].NBD = ""
			}
		},
		func(st *viewsvc.VolumeStatus) { st.View.Num = 9 }, // a backup joined
	} {
		c.views.change("vol0", edit)
		eventually(t, "the gateway has heard it", func() bool { return c.views.allHeard("vol0") })
	}
	if n := c.count(EventRoute); n != 0 {
		t.Fatalf("the route moved %d times, want never", n)
	}
	if _, err := d.WriteAt(page("y"), 0); err != nil {
		t.Fatal(err)
	}
	if n := c.count(EventDown); n != 0 {
		t.Errorf("the connection was cut %d times, want never", n)
	}
}

func TestClientLimitCountsSessionsBeingFenced(t *testing.T) {
	c := startCluster(t, 1, func(o *Options) { o.MaxClients = 2 })
	a, b := c.dial(), c.dial()
	if _, err := nbd.OpenDisk(t.Context(), c.addr, nbd.ClientOptions{Export: "vol0"}); err == nil {
		t.Error("a third client was taken on")
	}
	a.Close()
	b.Close()
	eventually(t, "there is room again", func() bool {
		d, err := nbd.OpenDisk(t.Context(), c.addr, nbd.ClientOptions{Export: "vol0"})
		if err == nil {
			d.Close()
		}
		return err == nil
	})
	c.gw.mu.Lock()
	c.gw.sessions += 2 // as if they were being fenced
	c.gw.mu.Unlock()
	if _, err := nbd.OpenDisk(t.Context(), c.addr, nbd.ClientOptions{Export: "vol0"}); err == nil {
		t.Error("a client was taken on beside two sessions that are being fenced")
	}
	c.gw.mu.Lock()
	c.gw.sessions -= 2
	c.gw.mu.Unlock()
}

func TestDeadGatewaysSocketIsReplacedAndALiveOnesIsNot(t *testing.T) {
	c := startCluster(t, 1, nil)
	path := strings.TrimPrefix(c.addr, "unix:")
	if _, err := Start(t.Context(), Options{Views: c.views, Listen: "unix:" + path}); err == nil {
		t.Fatal("a second gateway took the socket of a live one")
	}
	dead := t.TempDir() + "/socket"
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	g, err := Start(t.Context(), Options{Views: c.views, Listen: "unix:" + dead})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestCloseAnswersWhatItCanAndEndsTheRest(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes[0]
	s := c.submitter()
	w := write(1, "x")
	s.send(w)
	s.await(t, w)
	n.set(func() { n.mute = true })
	stuck := write(2, "y")
	s.send(stuck)
	eventually(t, "the primary has it", func() bool { return len(n.seen()) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.gw.Close(ctx); err == nil {
		t.Error("Close says that all was answered")
	}
	if err, ok := s.answered(stuck); ok {
		t.Errorf("the client got an answer that no primary gave: %v", err)
	}
	if _, err := c.gw.acquire(viewsvc.VolumeStatus{}); !errors.Is(err, blockdev.ErrSessionClosed) {
		t.Errorf("acquire after Close: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"no view service":  {},
		"bad view service": {View: []string{"nonsense"}},
		"negative clients": {Views: newFakeViews(), MaxClients: -1},
		"short timeout":    {Views: newFakeViews(), Timeout: time.Nanosecond},
		"bad address":      {Views: newFakeViews(), Listen: "nonsense"},
	} {
		if g, err := Start(t.Context(), o); err == nil {
			g.Close(t.Context())
			t.Errorf("%s: no error", name)
		}
	}
}
