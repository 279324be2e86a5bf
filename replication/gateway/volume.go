package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// ViewService is what a gateway asks of the view service; *viewsvc.Client is one.
type ViewService interface {
	// Watch returns a volume's status as soon as its News is another than news, and after a while in any case. An
	// error that wraps viewsvc.ErrNotFound says that there is no such volume.
	Watch(ctx context.Context, name string, news uint64) (viewsvc.VolumeStatus, error)
	Status(ctx context.Context) (viewsvc.ClusterStatus, error)
	// Claim changes who has a volume to itself. An error that wraps viewsvc.ErrClaimed says who has it.
	Claim(ctx context.Context, name string, c viewsvc.ClaimChange) (viewsvc.Claim, error)
}

// minHold is how fast a view service may answer without news, and not be taken for one that does not hold calls back.
const minHold = 10 * time.Millisecond

// errGone ends the sessions of a volume that was deleted (G10).
var errGone = fmt.Errorf("gateway: the volume was deleted: %w", blockdev.ErrSessionClosed)

// route is where a volume's primary is. It never changes; a later one takes its place.
type route struct {
	tenure viewsvc.ViewNum // it has one primary
	addr   string          // "" while there is no primary, or it is not known where it is

	// over ends when another route has taken the place of this one: its connections are to be cut (G7).
	over context.Context
	end  context.CancelFunc
}

// routeOf finds the primary in a status. last is the route before, or nil: a view service that has just begun to lead
// may know a primary, but not yet where it is.
func routeOf(st viewsvc.VolumeStatus, last *route) *route {
	r := route{tenure: st.View.Tenure}
	if st.View.Primary == "" {
		return &r
	}
	for _, p := range st.Peers {
		if p.Replica == st.View.Primary {
			r.addr = p.NBD
		}
	}
	if last != nil && r.addr == "" && r.tenure == last.tenure {
		r.addr = last.addr
	}
	return &r
}

// same tells whether two routes lead to the same primary in the same tenure. The view's number may differ: a backup
// that comes or goes is nothing to a client.
func (r *route) same(o *route) bool { return r.tenure == o.tenure && r.addr == o.addr }

// volume is a volume in use: it has sessions. A goroutine watches its views.
type volume struct {
	g    *Gateway
	name string
	id   viewsvc.VolumeID

	// stop ends the watcher; it is called when the last session has left.
	stop context.CancelFunc

	refs int // sessions; guarded by Gateway.mu

	// mu guards everything below.
	mu       sync.Mutex
	flight   flight
	sessions map[*lane]*session
	view     viewsvc.ViewNum // the newest that the view service told of
	word     route           // as that view has it
	route    *route          // the same, or of a later tenure: a hint that proved right
	news     chan struct{}   // closed, and replaced, when there is news of the volume
	gone     bool            // it was deleted
	claim    viewsvc.Claim   // the newest that was heard of
}

func newVolume(g *Gateway, st viewsvc.VolumeStatus) *volume {
	v := &volume{
		g: g, name: st.Volume.Name, id: st.Volume.ID,
		sessions: make(map[*lane]*session),
		news:     make(chan struct{}),
		view:     st.View.Num,
		claim:    st.Volume.Claim,
	}
	v.word = *routeOf(st, nil)
	first := v.word
	v.setRouteLocked(&first)
	return v
}

// setRouteLocked also cuts the connections of the route before.
func (v *volume) setRouteLocked(r *route) {
	if v.route != nil {
		v.route.end()
	}
	r.over, r.end = context.WithCancel(context.Background())
	v.route = r
}

// tellLocked wakes the sessions that wait for news.
func (v *volume) tellLocked() {
	close(v.news)
	v.news = make(chan struct{})
}

// look returns what a session needs to know now, and a channel that is closed when that may have changed.
func (v *volume) look() (r *route, news <-chan struct{}, gone bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.route, v.news, v.gone
}

// watch learns of the volume's views until ctx ends or the volume is gone. It is the volume's goroutine.
func (v *volume) watch(ctx context.Context, news uint64) {
	var silent error
	var retry backoff
	for {
		asked := time.Now()
		st, err := v.g.views.Watch(ctx, v.name, news)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, viewsvc.ErrNotFound):
			v.end()
			return
		case err != nil:
			if silent == nil {
				v.g.emit(Event{Kind: EventViewsDown, Volume: v.name, Err: err})
			}
			silent = err
		default:
			if silent != nil {
				v.g.emit(Event{Kind: EventViewsUp, Volume: v.name})
			}
			silent = nil
			if !v.learn(st) {
				return
			}
			if st.News != news || time.Since(asked) > minHold {
				news = st.News
				retry.reset()
				continue
			}
			// A service that neither holds the call nor has news must not make this loop spin.
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry.next()):
		}
	}
}

// learn takes a status in. It returns false if the volume is gone.
func (v *volume) learn(st viewsvc.VolumeStatus) bool {
	if st.Volume.ID != v.id || st.Deleting {
		v.end()
		return false
	}
	if v.g.remember(st) {
		v.g.emit(Event{Kind: EventGrown, Volume: v.name, Size: st.Volume.Size})
	}
	v.evict(st.Volume.Claim)
	v.mu.Lock()
	if st.View.Num < v.view { // from a view server that was left behind (G7)
		v.mu.Unlock()
		return true
	}
	newer := st.View.Num > v.view
	v.view = st.View.Num
	next := routeOf(st, v.route)
	v.word = *next
	// What is no newer than when a hint was taken does not speak against it.
	moved := !next.same(v.route) && (newer || v.view >= v.route.tenure)
	if moved {
		v.setRouteLocked(next)
	}
	v.tellLocked()
	v.mu.Unlock()
	if moved {
		v.g.emit(Event{Kind: EventRoute, Volume: v.name, View: st.View.Num, Addr: next.addr})
	}
	return true
}

// end ends all sessions: the volume is gone (G10). Their clients close them.
func (v *volume) end() {
	v.g.forget(v.name, v.id)
	v.mu.Lock()
	v.gone = true
	v.route.end()
	v.tellLocked()
	clients := make([]blockdev.Client, 0, len(v.sessions))
	for _, s := range v.sessions {
		clients = append(clients, s.client)
	}
	v.mu.Unlock()
	v.g.emit(Event{Kind: EventGone, Volume: v.name})
	for _, c := range clients {
		c.Abort(errGone)
	}
}

// sendWoken sends requests that had to wait and became ready, whatever session they are of. buf is room for them; it
// is returned, to be used again. Whoever takes something out of the flight calls this afterwards.
func (v *volume) sendWoken(buf []*blockdev.Request) []*blockdev.Request {
	for {
		v.mu.Lock()
		l := v.flight.nextWoken()
		if l == nil {
			v.mu.Unlock()
			return buf
		}
		var up *upstream
		if s := v.sessions[l]; s != nil {
			up = s.live // without one they go with the replay
		}
		if up != nil {
			buf = v.flight.take(l, buf[:0], maxBurst)
		}
		v.mu.Unlock()
		if up != nil {
			up.send(buf)
		}
	}
}
