package replication

import (
	"sync"
	"time"

	"lockstep/viewsvc"
)

// reportPatience is how long a ping waits for the reports of replicas that are busy storing a view.
const reportPatience = 50 * time.Millisecond

// desk is where a node meets one of its replicas. What the view service orders is carried out here, and reports are made
// here, by a goroutine of the replica's own: a disk that hangs holds up whoever waits for the replica, and must not hold
// up the pings, in which the node says that it lives and what all its other replicas do.
type desk struct {
	r    *Replica
	wake chan struct{} // holds one token at most
	done chan struct{} // closed when the replica is taken out of service

	mu      sync.Mutex            // guards everything below; nothing is waited for with it held
	orders  *viewsvc.VolumeOrders // newest that came, and was not carried out
	last    ReplicaStats          // newest report
	asked   time.Time             // when a report was asked for that has not come; zero: none is due
	written chan struct{}         // closed when it has
}

// newDesk makes the desk of a replica that was just opened: nobody holds anything up yet.
func newDesk(r *Replica) *desk {
	return &desk{r: r, wake: make(chan struct{}, 1), done: make(chan struct{}), last: r.stats()}
}

// run carries out orders and makes reports until close.
func (d *desk) run() {
	for {
		select {
		case <-d.done:
			return
		case <-d.wake:
		}
		d.mu.Lock()
		orders := d.orders
		d.orders = nil
		d.mu.Unlock()
		if orders != nil {
			d.r.Orders(*orders)
		}
		report := d.r.stats()
		d.mu.Lock()
		d.last = report
		// Orders that came meanwhile are not in the report, which is as good as one that was made before they came.
		if !d.asked.IsZero() {
			d.asked = time.Time{}
			close(d.written)
		}
		d.mu.Unlock()
	}
}

func (d *desk) close() { close(d.done) }

func (d *desk) ring() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// order leaves orders, in the place of older ones that were not carried out.
func (d *desk) order(o viewsvc.VolumeOrders) {
	d.mu.Lock()
	d.orders = &o
	d.mu.Unlock()
	d.ring()
}

// ask asks for a report. It returns nil if one that was asked for earlier has not come: that is not waited for twice.
func (d *desk) ask() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked.IsZero() {
		return nil
	}
	d.asked, d.written = time.Now(), make(chan struct{})
	d.ring()
	return d.written
}

// stats is the newest report. Of a replica that does not answer it says for how long something has held it up.
func (d *desk) stats() ReplicaStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.last
	if !d.asked.IsZero() {
		s.OldestIO = max(s.OldestIO, d.r.store.OldestIO().Milliseconds(), time.Since(d.asked).Milliseconds())
	}
	return s
}

// volume is the name of the volume.
func (d *desk) volume() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last.Name
}

// deskOf finds the desk of a volume's replica, nil if there is none.
func (n *Node) deskOf(id viewsvc.VolumeID) *desk {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.desks[id]
}

// replicaOf finds the replica of a volume.
func (n *Node) replicaOf(id viewsvc.VolumeID) *Replica {
	if d := n.deskOf(id); d != nil {
		return d.r
	}
	return nil
}

// replicaStats asks all replicas for reports, and takes older ones of those that do not answer.
func (n *Node) replicaStats() []ReplicaStats {
	n.mu.Lock()
	list := make([]*desk, 0, len(n.desks))
	for _, d := range n.desks {
		list = append(list, d)
	}
	n.mu.Unlock()
	answers := make([]<-chan struct{}, len(list))
	for i, d := range list {
		answers[i] = d.ask()
	}
	patience := time.NewTimer(reportPatience)
	defer patience.Stop()
	for _, a := range answers {
		if a == nil {
			continue
		}
		select {
		case <-a:
			continue
		case <-patience.C:
		}
		break
	}
	out := make([]ReplicaStats, len(list))
	for i, d := range list {
		out[i] = d.stats()
	}
	return out
}
