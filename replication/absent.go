package replication

import (
	"time"

	"lockstep/viewsvc"
)

// absence is why a node has no replica of a volume in service although something of it is on its disk, or is to be. Pings
// tell of it: an operator wants to know, and the view service forgets a deleted volume only when no node makes or removes a
// copy of it.
type absence struct {
	working bool  // it is formatted, opened or removed
	err     error // of the last try
}

func (a absence) text() string {
	if a.err == nil {
		return ""
	}
	return a.err.Error()
}

// makeRetry is the pause after work on a replica that failed.
const makeRetry = 5 * time.Second

// beside runs work on a volume in a goroutine of its own, unless some is under way. It is told what error the last try ended
// with. The volume counts as absent until it succeeds.
func (n *Node) beside(v viewsvc.Volume, work func(before error) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.absent[v.ID]
	if before.working || n.closed {
		return
	}
	n.absent[v.ID] = absence{working: true, err: before.err}
	n.run(func() { // ends when the work is done; Close waits
		err := work(before.err)
		n.mu.Lock()
		if err == nil {
			delete(n.absent, v.ID)
		} else {
			n.absent[v.ID] = absence{working: true, err: err}
		}
		n.mu.Unlock()
		if err == nil {
			return
		}
		if before.text() != err.Error() {
			n.opts.OnEvent(Event{Kind: EventUnusable, Volume: v.Name, Err: err})
		}
		select { // the order is going to be repeated at once, and may well fail again
		case <-n.ctx.Done():
		case <-time.After(makeRetry):
		}
		n.mu.Lock()
		n.absent[v.ID] = absence{err: err}
		n.mu.Unlock()
	})
}

// settled tells that there is nothing of a volume here, and is to be nothing.
func (n *Node) settled(id viewsvc.VolumeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.absent[id].working {
		delete(n.absent, id)
	}
}
