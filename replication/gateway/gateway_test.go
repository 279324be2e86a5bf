package gateway

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

// What the primary says of holes is what the client is told, after a failover too.
func TestExtentsAreThePrimarys(t *testing.T) {
	c := startCluster(t, 2, nil)
	d := c.dial()
	want := []blockdev.Extent{{Length: 1, State: blockdev.ExtentHole}, {Length: 8191, State: blockdev.ExtentZero}}
	for i := range 2 {
		c.moveTo(i)
		if got, err := d.Extents(4096, 8192); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v", got, err)
		}
	}
}

// A session of before the volume grew uses what it has now, over a failover too; what is beyond stays refused. Whoever owns
// the gateway is told.
func TestConnectedClientUsesWhatTheVolumeHasGrownBy(t *testing.T) {
	c := startCluster(t, 2, nil)
	s := c.submitter()
	last := uint64(fakeDiskBytes / blockdev.BlockSize)
	refused := func(block uint64) {
		t.Helper()
		r := write(block, "past the end")
		s.send(r)
		eventually(t, "it is answered", func() bool { _, ok := s.answered(r); return ok })
		if err, _ := s.answered(r); !errors.Is(err, blockdev.ErrNoSpace) {
			t.Errorf("a write past the end: %v", err)
		}
	}
	done := func(r *blockdev.Request) {
		t.Helper()
		s.send(r)
		s.await(t, r)
	}
	refused(last)
	c.grow(2 * blockdev.BlockSize)
	eventually(t, "the owner is told", func() bool { return c.count(EventGrown) == 1 })
	done(write(last, "first"))
	c.moveTo(1)
	done(write(last+1, "second"))
	refused(last + 2)
	if size := s.conn.Info().Size; size != fakeDiskBytes {
		t.Errorf("the client was told of %d bytes", size)
	}
	if size := c.dial().Size(); size != fakeDiskBytes+2*blockdev.BlockSize {
		t.Errorf("a new client is told of %d bytes", size)
	}
	// A view server that was left behind has a smaller one.
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) { st.Volume.Size = fakeDiskBytes })
	c.moveTo(0)
	eventually(t, "the move is heard of", func() bool { return c.count(EventRoute) == 2 })
	done(write(last+1, "third"))
	if size := c.dial().Size(); size != fakeDiskBytes+2*blockdev.BlockSize || c.count(EventGrown) != 1 {
		t.Errorf("it has shrunk to %d bytes", size)
	}
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

// A read-only volume can be read and not changed; another one is as it was.
func TestReadOnlyVolumes(t *testing.T) {
	for name, c := range map[string]struct {
		adjust func(*Options)
		want   bool
	}{
		"all":     {func(o *Options) { o.ReadOnly = true }, true},
		"by name": {func(o *Options) { o.ReadOnlyVolumes = []string{"x", "vol0"} }, true},
		"another": {func(o *Options) { o.ReadOnlyVolumes = []string{"vol"} }, false},
	} {
		d := startCluster(t, 1, c.adjust).dial()
		if _, err := d.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := d.WriteAt(page("x"), 0); errors.Is(err, blockdev.ErrReadOnly) != c.want || d.Info().ReadOnly() != c.want {
			t.Errorf("%s: write: %v; said to be read-only: %v", name, err, d.Info().ReadOnly())
		}
	}
}

func TestUnknownVolume(t *testing.T) {
	c := startCluster(t, 1, nil)
	for _, name := range []string{"", "nobody", "vol0?session=x&generation=1", strings.Repeat("v", exportname.MaxVolumeBytes+1)} {
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
