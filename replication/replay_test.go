package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// attachAs attaches as a gateway's session does.
func attachAs(t testing.TB, r *Replica, id blockdev.SessionID) *client {
	t.Helper()
	c := &client{counter: counter{done: make(chan *blockdev.Request, 4096)}, aborted: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := r.Attach(ctx, id, c)
	if err != nil {
		t.Fatal(err)
	}
	c.s = s
	return c
}

// numberedWrite fills block 0 with a letter.
func numberedWrite(letter byte, slot int, seq uint64) *blockdev.Request {
	q := write(0, bytes.Repeat([]byte{letter}, blockdev.BlockSize))
	q.ID = blockdev.RequestID(slot, seq)
	return q
}

func (c *client) must(t testing.TB, q *blockdev.Request) {
	t.Helper()
	if !c.try(q) {
		t.Fatal("the session was ended")
	}
	if q.Err != nil {
		t.Fatal(q.Err)
	}
}

func letterAt0(t testing.TB, r *Replica) byte {
	t.Helper()
	b := make([]byte, blockdev.BlockSize)
	if err := r.store.Read(0, b); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// TestRepeatedWriteIsNotCarriedOutAgain: W(A) of one gateway is carried out, its answer is lost; another gateway's client
// sees it and writes B; the first gateway sends W(A) again. Whatever happened to the replicas in between, B stays.
// That holds in the name's own space of numbers and in another. Without numbers, A comes back: the harm is real. So it
// does when the space is lost on the way: numbers of another space say nothing.
func TestRepeatedWriteIsNotCarriedOutAgain(t *testing.T) {
	for _, between := range []struct {
		name string
		do   func(g *group) *Replica // returns the primary that the repetition goes to

		alone bool // the backup is away when A and B are written
	}{
		{"nothing", func(g *group) *Replica { return g.open(2) }, false},
		{"failover", func(g *group) *Replica { g.kill("a"); return g.open(1) }, false},
		{"handover", func(g *group) *Replica { g.become("b", "a"); return g.open(2) }, false},
		{"power failure", func(g *group) *Replica {
			g.crash("a", "b")
			g.start("a")
			g.start("b")
			return g.open(2)
		}, false},
		{"clean restart, all in the image", func(g *group) *Replica {
			g.stop("b")
			g.open(1)
			g.stop("a")
			g.start("a")
			return g.open(1)
		}, false},
		{"the next primary got a copy of the image", func(g *group) *Replica {
			r := g.open(1)
			end := uint64(r.store.Marks().End)
			c := attachAs(g.t, r, blockdev.SessionID{})
			for uint64(r.store.Marks().First) <= end {
				c.must(g.t, write(100*blockdev.BlockSize, make([]byte, 64<<10)))
			}
			c.s.Close()
			g.start("b")
			g.open(2)
			g.kill("a")
			return g.open(1)
		}, true},
	} {
		for _, numbers := range []struct {
			name, first, again string
			remembered         bool
		}{
			{"numbers of the name", "gateway 1", "gateway 1", true},
			{"a space of its own", "space", "space", true},
			{"no numbers", "", "", false},
			{"another process", "space", "another space", false},
		} {
			t.Run(between.name+"/"+numbers.name, func(t *testing.T) {
				g := smallLog(t, 2)
				r := g.open(2)
				if between.alone {
					g.stop("b")
					r = g.open(1)
				}
				id := blockdev.SessionID{Name: "gateway 1", Generation: 1, Numbers: numbers.first}
				first := attachAs(t, r, id)
				first.must(t, numberedWrite('A', 3, 7))
				second := attachAs(t, r, blockdev.SessionID{Name: "gateway 2", Generation: 1, Numbers: "gateway 2"})
				second.must(t, numberedWrite('B', 3, 9))
				first.s.Close()
				second.s.Close()

				r = between.do(g)
				id.Generation, id.Numbers = 2, numbers.again
				again := attachAs(t, r, id)
				defer again.s.Close()
				again.must(t, numberedWrite('A', 3, 7))
				want := byte('B')
				if !numbers.remembered {
					want = 'A'
				}
				if got := letterAt0(t, r); got != want {
					t.Errorf("the disk has %c, want %c", got, want)
				}
				again.must(t, numberedWrite('C', 3, 8)) // the slot goes on
				if got := letterAt0(t, r); got != 'C' {
					t.Errorf("the disk has %c, want the next one's C", got)
				}
			})
		}
	}
}

// A repetition of what is ordered and not committed is answered when that is (R2), and neither before nor twice.
func TestRepetitionOfAnUncommittedWriteWaitsForIt(t *testing.T) {
	g := newGroup(t, groupOptions{replicas: 2, size: 4 << 20, logBytes: 16 << 20, segBytes: 4 << 20, sync: viewsvc.SyncAlways})
	r := g.open(2)
	release := g.pin() // the backup stays a member
	defer release()
	id := blockdev.SessionID{Name: "gateway", Generation: 1, Numbers: "gateway"}
	first := attachAs(t, r, id)
	g.deafen("a", true) // nor does the primary get it removed
	g.kill("b")
	first.s.Submit([]*blockdev.Request{numberedWrite('A', 0, 1)})
	g.await("the write is in the log", func(viewsvc.View) bool { return r.store.Marks().End > r.store.Marks().Committed })
	end := r.store.Marks().End

	id.Generation = 2
	again := attachAs(t, r, id)
	defer again.s.Close()
	q := numberedWrite('A', 0, 1)
	again.s.Submit([]*blockdev.Request{q})
	other := numberedWrite('B', 1, 1)
	again.s.Submit([]*blockdev.Request{other})
	g.await("the other write is in the log", func(viewsvc.View) bool { return r.store.Marks().End > end })
	select {
	case <-again.done:
		t.Fatal("answered before it is committed")
	default:
	}
	g.deafen("a", false)
	release()
	for range 2 {
		select {
		case <-again.done:
		case <-time.After(30 * time.Second):
			t.Fatal("never answered")
		}
	}
	if q.Err != nil || other.Err != nil {
		t.Error(q.Err, other.Err)
	}
	if got := letterAt0(t, r); got != 'B' {
		t.Errorf("the disk has %c: the repetition was carried out behind the younger write", got)
	}
}

// TestOldGenerationDoesNotAttachToTheNextPrimary is R3: also after the session's newest attachment has ended.
func TestOldGenerationDoesNotAttachToTheNextPrimary(t *testing.T) {
	g := newGroup(t, groupOptions{replicas: 2, size: 4 << 20, logBytes: 16 << 20, segBytes: 4 << 20, sync: viewsvc.SyncAlways})
	r := g.open(2)
	// The second name has its numbers elsewhere, and new ones with each attachment: its generations stay its own.
	c := attachAs(t, r, blockdev.SessionID{Name: "gateway", Generation: 5, Numbers: "gateway"})
	named := attachAs(t, r, blockdev.SessionID{Name: "named", Generation: 5, Numbers: "space"})
	named.must(t, numberedWrite('B', 0, 1))
	named.s.Close()
	c.must(t, numberedWrite('A', 0, 1))
	c.s.Close()
	try := func(r *Replica, name string, generation uint64) error {
		s, err := r.Attach(t.Context(), blockdev.SessionID{Name: name, Generation: generation, Numbers: fmt.Sprint("numbers ", generation)}, c)
		if err == nil {
			s.Close()
		}
		return err
	}
	for range 2 {
		for _, old := range []uint64{1, 4, 5} {
			for _, name := range []string{"gateway", "named"} {
				if err := try(r, name, old); !errors.Is(err, blockdev.ErrSessionClosed) {
					t.Errorf("generation %d of %s: %v", old, name, err)
				}
			}
		}
		g.kill("a")
		r = g.open(1)
	}
	for _, name := range []string{"gateway", "named"} {
		if err := try(r, name, 6); err != nil {
			t.Error(err)
		}
	}
}

// A lower number in a slot than the one that it has is a client's error; it is not carried out.
func TestNumberThatGoesBackIsRefused(t *testing.T) {
	g := newGroup(t, groupOptions{replicas: 1, size: 4 << 20, logBytes: 16 << 20, segBytes: 4 << 20, sync: viewsvc.SyncAlways})
	r := g.open(1)
	c := attachAs(t, r, blockdev.SessionID{Name: "gateway", Generation: 1, Numbers: "gateway"})
	defer c.s.Close()
	c.must(t, numberedWrite('A', 0, 2))
	q := numberedWrite('B', 0, 1)
	if !c.try(q) || !errors.Is(q.Err, blockdev.ErrInvalid) || letterAt0(t, r) != 'A' {
		t.Errorf("%v; the disk has %c", q.Err, letterAt0(t, r))
	}
	// Requests without a number, or of a slot that is not remembered, are carried out as ever.
	for _, id := range []uint64{0, blockdev.RequestID(blockdev.MaxSlots, 1), blockdev.RequestID(blockdev.MaxSlots, 1)} {
		q := numberedWrite('C', 0, 0)
		q.ID = id
		c.must(t, q)
	}
}

// R1 holds also when the older attachment's connection has just ended: its end waits for what the committer has of it, and
// the next attachment waits for its end. Otherwise what it sent last is not known yet, and carried out twice.
func TestAttachmentWaitsForTheEndOfTheOneBefore(t *testing.T) {
	g := newGroup(t, groupOptions{replicas: 1, size: 4 << 20, logBytes: 16 << 20, segBytes: 4 << 20, sync: viewsvc.SyncAlways})
	r := g.open(1)
	id := blockdev.SessionID{Name: "gateway", Generation: 1, Numbers: "gateway"}
	old := attachAs(t, r, id).s.(*session)
	hands := func(n int) { // of the committer
		r.mu.Lock()
		defer r.mu.Unlock()
		old.busy += n
		r.idle.Broadcast()
	}
	hands(1)
	ended := make(chan struct{})
	go func() { old.Close(); close(ended) }() // its connection is reset; ends when the committer is done
	g.await("the connection's end", func(viewsvc.View) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.named["gateway"] == nil
	})
	attached := make(chan *client)
	go func() { // likewise
		id.Generation = 2
		attached <- attachAs(t, r, id)
	}()
	select {
	case c := <-attached:
		t.Error("attached while the committer has requests of the attachment before")
		hands(-1)
		c.s.Close()
	case <-time.After(100 * time.Millisecond): // a wrong one takes microseconds
		hands(-1)
		(<-attached).s.Close()
	}
	<-ended
}
