package gateway

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/viewsvc"
)

// refusedWith dials and wants a refusal that says all of these.
func refusedWith(tb testing.TB, addr string, words ...string) {
	tb.Helper()
	d, err := dialReal(tb, addr)
	if err == nil {
		d.Close()
		tb.Fatal("it was let in")
	}
	if !errors.Is(err, nbd.ErrRefused) {
		tb.Errorf("%v, want a refusal", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			tb.Errorf("%q does not say %q", err, w)
		}
	}
}

func writeByte(tb testing.TB, d *nbd.Disk, b byte) {
	tb.Helper()
	if _, err := d.WriteAt([]byte{b}, 4096); err != nil {
		tb.Fatal(err)
	}
}

func readByte(tb testing.TB, d *nbd.Disk) byte {
	tb.Helper()
	var b [1]byte
	if _, err := d.ReadAt(b[:], 4096); err != nil {
		tb.Fatal(err)
	}
	return b[0]
}

func TestExclusiveAttachmentRefusesEverybodyElse(t *testing.T) {
	c := startReal(t, 2)
	alone, _ := c.gateway(AttachOptions{Exclusive: true})
	second, _ := c.gateway(AttachOptions{Exclusive: true})
	plain, _ := c.gateway(AttachOptions{})
	d := mustDial(t, alone)
	if d.Info().Flags&nbd.FlagCanMultiConn != 0 {
		t.Error("the client is told to open further connections, which are refused")
	}
	writeByte(t, d, 'a')
	host, _ := os.Hostname()
	holder := []string{"host " + host, fmt.Sprintf("pid %d", os.Getpid()), "since 20"}
	refusedWith(t, second, append(holder, "--take-over")...)
	refusedWith(t, plain, append(holder, "detach-all")...)
	refusedWith(t, alone, "another client of this gateway")
	primary := c.safe(2)
	refusedWith(t, c.nodes[primary].NBDAddr().String(), holder...)

	// The claim is no primary's own: it outlives it.
	c.stop(primary)
	writeByte(t, d, 'b')
	next := c.safe(1)
	refusedWith(t, second, holder...)
	refusedWith(t, c.nodes[next].NBDAddr().String(), holder...)

	// The client leaves: the disk is free at once.
	d.Close()
	eventually(t, "the next one gets it", func() bool {
		d, err := dialReal(t, second)
		if err != nil {
			return false
		}
		defer d.Close()
		return readByte(t, d) == 'b'
	})
	eventually(t, "everybody gets it", func() bool { _, err := dialReal(t, plain); return err == nil })
}

func TestExclusiveAttachmentIsRefusedWhileOthersAreAttached(t *testing.T) {
	c := startReal(t, 1)
	plain, _ := c.gateway(AttachOptions{})
	alone, _ := c.gateway(AttachOptions{Exclusive: true})
	d := mustDial(t, plain)
	writeByte(t, d, 'a')
	refusedWith(t, alone, "in use by 1 other", "--take-over")
	writeByte(t, d, 'b') // whose client has not noticed
	mustDial(t, plain)   // nor has anybody else
}

// Whoever asks for a disk that is in use, and dies, is in nobody's way: those who were attached come back to the next primary.
// Who came later, or asks as well, does not get past the claim.
func TestClaimOfADeadProcessKeepsNobodyFromComingBack(t *testing.T) {
	c := startReal(t, 2)
	plain, _ := c.gateway(AttachOptions{})
	later, _ := c.gateway(AttachOptions{})
	d := mustDial(t, plain)
	writeByte(t, d, 'a')
	if _, err := c.c.Claim(t.Context(), "vol0", viewsvc.ClaimChange{Act: viewsvc.ClaimAsk, Owner: "gone", Host: "elsewhere"}); err != nil {
		t.Fatal(err)
	}
	c.stop(c.safe(2))
	writeByte(t, d, 'b')
	refusedWith(t, later, "host elsewhere", "detach-all")
}

// A disk that was taken over has changed behind the back of its former client, who must never write to it again; not
// even when it is free.
func TestTakeOverEndsTheFormerClientForGood(t *testing.T) {
	for _, by := range []string{"exclusive", "plain"} {
		t.Run(by, func(t *testing.T) {
			c := startReal(t, 2)
			first, _ := c.gateway(AttachOptions{Exclusive: by == "exclusive"})
			over, _ := c.gateway(AttachOptions{Exclusive: true, TakeOver: true})
			d := mustDial(t, first)
			writeByte(t, d, 'a')
			e := mustDial(t, over)
			writeByte(t, e, 'b')
			if _, err := d.WriteAt([]byte{'c'}, 4096); err == nil {
				t.Error("the former client writes")
			}
			e.Close()
			eventually(t, "the disk is free again", func() bool {
				s, err := c.c.Status(t.Context())
				return err == nil && s.Volumes[0].Volume.Claim.Owner == ""
			})
			if _, err := d.WriteAt([]byte{'c'}, 4096); err == nil {
				t.Error("the former client writes, now that the disk is free")
			}
			eventually(t, "the first gateway's next client gets it", func() bool { // the node may hear of it later than we
				d, err := dialReal(t, first)
				if err != nil {
					return false
				}
				defer d.Close()
				if got := readByte(t, d); got != 'b' {
					t.Errorf("the disk has %q", got)
				}
				return true
			})
			if by == "exclusive" {
				return
			}
			// Take-over is spent: two clients that reconnect do not take the disk from each other for ever.
			mustDial(t, first)
			refusedWith(t, over, "in use")
		})
	}
}

func TestDetachAllEndsEveryClient(t *testing.T) {
	c := startReal(t, 1)
	plain, _ := c.gateway(AttachOptions{})
	d := mustDial(t, plain)
	direct := mustDial(t, c.nodes["n1"].NBDAddr().String())
	writeByte(t, d, 'a')
	writeByte(t, direct, 'b')
	if _, err := c.c.Claim(t.Context(), "vol0", viewsvc.ClaimChange{Act: viewsvc.ClaimEvict}); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*nbd.Disk{"gateway": d, "direct": direct} {
		eventually(t, name+"'s client is ended", func() bool { _, err := d.WriteAt([]byte{'c'}, 4096); return err != nil })
	}
	writeByte(t, mustDial(t, plain), 'd')
}

// The former process of a session may be alive still, stopped or cut off from the view service, when the next one comes. No
// clock decides which is the later.
func TestLaterProcessOfASessionEndsTheFormer(t *testing.T) {
	c := startReal(t, 1)
	first, g := c.gateway(AttachOptions{Session: "s", Exclusive: true})
	d := mustDial(t, first)
	writeByte(t, d, 'a')
	tries := uint64(0)
	for _, b := range []byte("bc") {
		next, h := c.gateway(AttachOptions{Session: "s", Exclusive: true})
		e := mustDial(t, next)
		writeByte(t, e, b)
		eventually(t, "the former one tries to come back", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			before := tries
			tries = g.generations[string(g.known["vol0"].Volume.ID)+"s"]
			return before > 0 && tries > before
		})
		if got := readByte(t, e); got != b {
			t.Errorf("the disk has %q, want %q", got, b)
		}
		d.Close() // the former one's client goes; that is nothing to the next
		eventually(t, "the former session has ended", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.sessions == 0 })
		writeByte(t, e, b)
		d, g, tries = e, h, 0
	}
}

// agentOf is a client, as the kernel is one of `lockstep attach`, that has written.
func agentOf(tb testing.TB, g *Gateway, o AttachOptions) (net.Conn, error) {
	tb.Helper()
	export, err := g.Export(tb.Context(), "vol0", o)
	if err != nil {
		tb.Fatal(err)
	}
	ours, theirs := socketPair(tb)
	failed := make(chan error, 1)
	go func() { failed <- g.Server().ServeTransmission(theirs, export) }() // ends with the connection
	if err := ours.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	if err := (&rawClient{ours}).write('a'); err != nil {
		ours.Close()
		select {
		case why := <-failed:
			return nil, why
		case <-time.After(time.Second): // it waits to be let in
			return nil, err
		}
	}
	return ours, ours.SetDeadline(time.Time{})
}

// TestKeptClaimIsForTheSameSessionOnly is what `lockstep attach` relies on: its process is killed and started again
// while a file system is mounted.
func TestKeptClaimIsForTheSameSessionOnly(t *testing.T) {
	c := startReal(t, 2)
	_, g := c.gateway(AttachOptions{})
	serve := func(o AttachOptions) (net.Conn, error) { return agentOf(t, g, o) }
	agent := AttachOptions{Session: "agent", Generation: 1, Exclusive: true, Keep: true}
	first, err := serve(agent)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	eventually(t, "the connection has gone", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.sessions == 0 })
	if _, err := serve(AttachOptions{Session: "other", Exclusive: true}); !errors.Is(err, blockdev.ErrExclusive) {
		t.Errorf("another one: %v", err)
	}
	agent.Generation = 2
	again, err := serve(agent)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	eventually(t, "the connection has gone", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.sessions == 0 })
	if err := g.Release(t.Context(), "vol0", "agent"); err != nil {
		t.Fatal(err)
	}
	other, err := serve(AttachOptions{Session: "other", Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
}

// A claim of which the answer was lost is in everybody's way and nobody's, if it is not given up. Seen to fail without
// withdraw, and without giveUp.
func TestClaimWhoseAnswerWasLostIsGivenUp(t *testing.T) {
	for _, act := range []viewsvc.ClaimAct{viewsvc.ClaimAsk, viewsvc.ClaimTakeOver, viewsvc.ClaimHold} {
		t.Run(string(act), func(t *testing.T) {
			c := startCluster(t, 1, func(o *Options) {
				o.Attach = AttachOptions{Exclusive: true, TakeOver: act == viewsvc.ClaimTakeOver}
			})
			c.views.lose(act)
			refusedWith(t, c.addr, "timed out")
			if claim := c.views.claim("vol0"); claim.Owner != "" {
				t.Errorf("left behind: %+v", claim)
			}
			c.views.lose("")
			c.dial()
		})
	}
}

// The process of a disk that is in use was started again, and the view service is slow: the disk stays its own. Seen to fail
// with a withdraw that asks nothing.
func TestClaimThatWasHeldBeforeOutlivesALostAnswer(t *testing.T) {
	c := startCluster(t, 1, func(o *Options) { o.Attach = AttachOptions{Exclusive: true, Session: "agent"} })
	held := viewsvc.Claim{Num: 2, Era: 1, Owner: "agent", Held: true}
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) { st.Volume.Claim = held })
	c.views.lose(viewsvc.ClaimAsk)
	refusedWith(t, c.addr, "timed out")
	if claim := c.views.claim("vol0"); !claim.Held || claim.Owner != "agent" {
		t.Errorf("it has become %+v", claim)
	}
}
