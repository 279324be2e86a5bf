package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/blockdev"
)

// frontClient is a client connection that says what happens after its session's Close.
type frontClient struct {
	closed atomic.Bool
	late   atomic.Int64
	done   atomic.Int64
}

func (f *frontClient) Complete(done []*blockdev.Request) {
	if f.closed.Load() {
		f.late.Add(int64(len(done)))
	}
	f.done.Add(int64(len(done)))
}

func (f *frontClient) Abort(error) {}

// TestNothingIsCompletedAfterClose is G9, while answers are on their way.
func TestNothingIsCompletedAfterClose(t *testing.T) {
	c := startCluster(t, 1, nil)
	export, err := c.gw.Open(t.Context(), "vol0")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		f := new(frontClient)
		s, err := export.Device.Attach(t.Context(), blockdev.SessionID{}, f)
		if err != nil {
			t.Fatal(err)
		}
		var burst []*blockdev.Request
		for k := range uint64(64) {
			burst = append(burst, write(k, "x"))
		}
		s.Submit(burst[:1])
		eventually(t, "the session is connected", func() bool { return f.done.Load() == 1 })
		for k := range burst {
			s.Submit(burst[k : k+1])
			if k == i%len(burst) {
				break
			}
		}
		s.Close()
		f.closed.Store(true)
		for _, r := range burst {
			if r.Scratch.LSN != 0 {
				t.Fatal("the gateway still knows a request of a closed session")
			}
		}
		if n := f.late.Load(); n != 0 {
			t.Fatalf("%d requests were completed after Close", n)
		}
	}
}

// TestYoungRequestsComeAfterTheReplay is G2 with a client that does not stop for it. Only order is looked at: what is in
// flight together commutes (G3), but an old request must not starve.
func TestYoungRequestsComeAfterTheReplay(t *testing.T) {
	const old, young = 2000, 4000
	c := startCluster(t, 2, nil)
	c.nodes[0].set(func() { c.nodes[0].mute = true })
	c.nodes[1].set(func() { c.nodes[1].arrived = []blockdev.Request{} })
	export, err := c.gw.Open(t.Context(), "vol0")
	if err != nil {
		t.Fatal(err)
	}
	f := new(frontClient)
	s, err := export.Device.Attach(t.Context(), blockdev.SessionID{}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	submit := func(from, to uint64) {
		for i := from; i < to; i++ {
			s.Submit([]*blockdev.Request{{Op: blockdev.OpRead, Offset: i * 512, Length: 512, Data: make([]byte, 512)}})
		}
	}
	submit(0, old)
	eventually(t, "the first primary has some", func() bool { return len(c.nodes[0].seen()) >= maxInFlight })
	c.nodes[0].depose()
	var more sync.WaitGroup
	more.Go(func() { submit(old, old+young) })
	c.moveTo(1)
	more.Wait()
	eventually(t, "all are answered", func() bool { return f.done.Load() == old+young })
	for i, r := range c.nodes[1].seen() {
		if r.Offset != uint64(i)*512 {
			t.Fatalf("request %d came as number %d", r.Offset/512, i)
		}
	}
}

func TestNewsEndAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{retry: backoff{last: backoffMax}}
		began := time.Now()
		news := make(chan struct{})
		close(news)
		s.pause(t.Context(), news, 0)
		if d := time.Since(began); d != 0 {
			t.Errorf("paused for %v although there was news", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.pause(ctx, nil, 0)
		if d := time.Since(began); d != 0 {
			t.Errorf("paused for %v although the session has ended", d)
		}
		s.pause(t.Context(), nil, 0)
		if d := time.Since(began); d > backoffMax || d < backoffMax/2 {
			t.Errorf("paused for %v", d)
		}
		began = time.Now()
		s.pause(t.Context(), nil, 2*backoffMax)
		if d := time.Since(began); d != 0 {
			t.Errorf("paused for %v after a connection that had lasted", d)
		}
	})
}

func TestBackoffGrowsFromItsLeastToItsMost(t *testing.T) {
	var b backoff
	for round := range 2 {
		if d := b.next(); d > backoffMin || d < backoffMin/2 {
			t.Errorf("round %d: the first wait is %v", round, d)
		}
		var total time.Duration
		for range 50 {
			d := b.next()
			if d <= 0 || d > backoffMax {
				t.Fatalf("a wait of %v", d)
			}
			if d < backoffMax/2 && d > total*3/4+2*backoffMin {
				t.Errorf("a wait of %v after %v in all: the volume could be there for long", d, total)
			}
			total += d
		}
		if d := b.next(); d < backoffMax/2 {
			t.Errorf("the last wait is %v", d)
		}
		b.reset()
	}
}
