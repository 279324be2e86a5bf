package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/uuid"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/viewsvc"
)

// holdGrace is how long an exclusive client waits behind another one of this gateway before it is refused: a connection
// that has just been closed is not noticed in an instant.
const holdGrace = 200 * time.Millisecond

// releaseTimeout bounds the giving up of a claim. If that fails the claim stays, and the next owner has to take it over.
const releaseTimeout = 3 * time.Second

// AttachOptions say as whom a client attaches that is in the gateway's own process.
type AttachOptions struct {
	// Session is the client's identity, unique to it and the same over restarts of the process. "" makes one up.
	Session string
	// Generation grows by each start of a process that attaches as Session: it fences what the former process sent. One that
	// always attaches exclusively needs none: the view service's count of claims is added to it.
	Generation uint64

	Exclusive bool // refuse everybody else, and to attach while anybody else is attached
	TakeOver  bool // of an exclusive attachment: end whoever is in the way, once
	// Keep leaves an exclusive attachment standing when the client goes: for a process that is started again while its
	// disk is in use. Gateway.Release ends it.
	Keep bool
}

// validate checks what has limits.
func (o AttachOptions) validate() error {
	switch {
	case o.Generation >= 1<<32:
		return fmt.Errorf("gateway: generation %d of a session is out of bounds", o.Generation)
	case o.TakeOver && !o.Exclusive:
		return errors.New("gateway: only an exclusive attachment takes over")
	}
	return nil
}

// Export is a volume for a client that is served by Server().ServeTransmission or ServeConn of this gateway. Each
// connection is an attachment with a higher generation than the one before. An attachment that is refused fails with an
// error that wraps blockdev.ErrExclusive and says who is in the way.
func (g *Gateway) Export(ctx context.Context, volume string, o AttachOptions) (nbd.Export, error) {
	if err := o.validate(); err != nil {
		return nbd.Export{}, err
	}
	st, err := g.resolve(ctx, volume)
	if err != nil {
		return nbd.Export{}, err
	}
	return g.export(st, o), nil
}

func (g *Gateway) export(st viewsvc.VolumeStatus, o AttachOptions) nbd.Export {
	name := st.Volume.Name
	return nbd.Export{
		Name: name, Description: "Lockstep volume", Device: &device{g: g, st: st, opts: o}, FastZero: true, SingleConn: o.Exclusive,
		ReadOnly: g.opts.ReadOnly || slices.Contains(g.opts.ReadOnlyVolumes, name),
	}
}

// Release gives an exclusive attachment up that was kept. Its client must be gone.
func (g *Gateway) Release(ctx context.Context, volume, session string) error {
	_, err := g.views.Claim(ctx, volume, viewsvc.ClaimChange{Act: viewsvc.ClaimRelease, Owner: session})
	return err
}

// hold is a volume that a client of this gateway has for itself, or is about to.
type hold struct {
	ending bool          // its client is gone; guarded by Gateway.mu
	gone   chan struct{} // closed when the volume is free
}

// takeHold makes sure that a volume has one exclusive client here. Behind one that is just going it waits until it has
// gone.
func (g *Gateway) takeHold(ctx context.Context, v viewsvc.Volume) (*hold, error) {
	grace := time.NewTimer(holdGrace)
	defer grace.Stop()
	patient := true
	for {
		g.mu.Lock()
		h := g.holds[v.ID]
		if h == nil {
			h = &hold{gone: make(chan struct{})}
			g.holds[v.ID] = h
			g.mu.Unlock()
			return h, nil
		}
		ending := h.ending
		g.mu.Unlock()
		var over <-chan time.Time
		if !ending && patient {
			over = grace.C
		} else if !ending {
			return nil, fmt.Errorf("gateway: %w: volume %s is attached by another client of this gateway; detach it there", blockdev.ErrExclusive, v.Name)
		}
		select {
		case <-h.gone:
		case <-over:
			patient = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *Gateway) dropHold(id viewsvc.VolumeID) {
	g.mu.Lock()
	h := g.holds[id]
	delete(g.holds, id)
	g.mu.Unlock()
	close(h.gone)
}

// attachAlone is Attach of an exclusive client. It returns when the client has the volume to itself: the view service
// has its claim, the primary has let it in, knowing of the claim, and the view service has ended all others for good (G11).
func (d *device) attachAlone(ctx context.Context, c blockdev.Client) (_ blockdev.Session, err error) {
	g, name := d.g, d.st.Volume.Name
	h, err := g.takeHold(ctx, d.st.Volume)
	if err != nil {
		return nil, err
	}
	owner := d.opts.Session
	if owner == "" {
		owner = uuid.NewString()
	}
	change := viewsvc.ClaimChange{Act: viewsvc.ClaimAsk, Owner: owner, PID: os.Getpid()}
	if change.Host, err = os.Hostname(); err != nil {
		change.Host = "unknown"
	}
	if d.opts.TakeOver && g.firstTakeOver(d.st.Volume.ID) {
		change.Act = viewsvc.ClaimTakeOver
	}
	claim, err := g.views.Claim(ctx, name, change)
	if err != nil {
		if !errors.Is(err, viewsvc.ErrClaimed) {
			g.withdraw(name, owner)
		}
		g.dropHold(d.st.Volume.ID)
		return nil, fmt.Errorf("gateway: %w: %w", blockdev.ErrExclusive, err)
	}
	giveUp := func() {
		if !claim.Held { // else it is the same client's from before
			g.release(name, owner, claim.Start)
		}
		g.dropHold(d.st.Volume.ID)
	}
	s, err := d.begin(c, owner, claim.SessionEra())
	if err != nil {
		giveUp()
		return nil, err
	}
	s.alone = h
	s.start = claim.Start
	s.generation = firstGeneration(d.opts, claim.Start)
	conn, r, err := s.reach(ctx)
	if err == nil {
		if _, err = g.views.Claim(ctx, name, viewsvc.ClaimChange{Act: viewsvc.ClaimHold, Owner: owner, Start: claim.Start}); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		s.alone = nil
		s.cancel()
		s.leave()
		giveUp()
		return nil, fmt.Errorf("gateway: attach volume %s exclusively: %w", name, err)
	}
	g.emit(Event{Kind: EventClaimed, Volume: name, Session: owner, Generation: s.generation})
	go s.run(conn, r) // ends by Close
	return s, nil
}

// firstTakeOver tells, once for each volume, that this gateway may take it over: two gateways whose clients reconnect
// must not take a disk from each other again and again.
func (g *Gateway) firstTakeOver(id viewsvc.VolumeID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := !g.tookOver[id]
	g.tookOver[id] = true
	return first
}

// firstGeneration is what the generations of a client's connections are above. A later process of its session has a larger
// one, whether it attaches exclusively or not: it counts its starts, or the view service has counted claims since, or both.
func firstGeneration(o AttachOptions, claims uint64) uint64 { return (o.Generation + claims) << 32 }

// nextGeneration is that of a session's next connection. A name that a client brought may be that of an earlier session.
func (g *Gateway) nextGeneration(s *session) uint64 {
	if s.opts.Session == "" {
		return s.generation + 1
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	key := string(s.v.id) + s.name
	g.generations[key] = max(g.generations[key], s.generation) + 1
	return g.generations[key]
}

// release gives a claim up, as well as it can.
func (g *Gateway) release(volume, owner string, start uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	_, err := g.views.Claim(ctx, volume, viewsvc.ClaimChange{Act: viewsvc.ClaimRelease, Owner: owner, Start: start})
	g.emit(Event{Kind: EventReleased, Volume: volume, Session: owner, Err: err})
}

// withdraw gives up a claim of which the answer was lost, if it was made: it would be in everybody's way, and nobody's. One
// that is held is the same client's from before, who may have a file system on the disk.
func (g *Gateway) withdraw(volume, owner string) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	st, err := g.views.Watch(ctx, volume, 0)
	if claim := st.Volume.Claim; err == nil && claim.Owner == owner && !claim.Held {
		g.release(volume, owner, claim.Start)
	}
}

// endHold is the end of an exclusive client. Nothing of it can be carried out any more.
func (s *session) endHold() {
	if s.alone == nil {
		return
	}
	if !s.opts.Keep && !s.isEvicted() {
		s.v.g.release(s.v.name, s.name, s.start)
	}
	s.v.g.dropHold(s.v.id)
	s.alone = nil
}

// evict ends the sessions that a claim has ended for good.
func (v *volume) evict(claim viewsvc.Claim) {
	var ended []*session
	v.mu.Lock()
	if claim.Num <= v.claim.Num { // from a view server that was left behind
		v.mu.Unlock()
		return
	}
	v.claim = claim
	for _, s := range v.sessions {
		if alive, _ := claim.Admits(s.name, s.era); !alive && s.evicted == nil {
			s.evicted = fmt.Errorf("gateway: %w: the client was ended by a take-over or an operator (now attached: %v): %w",
				blockdev.ErrExclusive, claim, blockdev.ErrSessionClosed)
			ended = append(ended, s)
		}
	}
	v.mu.Unlock()
	for _, s := range ended {
		v.g.emit(Event{Kind: EventEvicted, Volume: v.name, Session: s.name, Err: s.evicted})
		s.cancel()
		s.client.Abort(s.evicted)
	}
}

// isEvicted tells whether the session was ended by a claim.
func (s *session) isEvicted() bool {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	return s.evicted != nil
}
