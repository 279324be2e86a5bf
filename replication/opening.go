package replication

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// A node pings from its first moment on, and opens its replicas side by side meanwhile. Until a replica is in service the node
// says that it works on it (absence). A disk that hangs keeps its own replicas, and neither the others nor the node.
const (
	// openAtOnce bounds how many replicas are opened, or closed, at the same time: each reads its log, or writes what is
	// left of it to the image.
	openAtOnce = 8
	// slotPatience is after what time one of them does not count any more: its disk hangs, or has much to do.
	slotPatience = 2 * time.Second
)

// slot waits for the turn to open or close a replica. Whoever has got it calls release when he is done.
func (n *Node) slot() (release func()) {
	n.slots <- struct{}{}
	free := sync.OnceFunc(func() { <-n.slots })
	late := time.AfterFunc(slotPatience, free)
	return func() {
		late.Stop()
		free()
	}
}

// openReplicas begins to open what is in the data directory.
func (n *Node) openReplicas() error {
	ids, err := n.home.volumes()
	if err != nil {
		return err
	}
	for _, id := range ids {
		n.beside(viewsvc.Volume{ID: id, Name: string(id)}, func(error) error { return n.openOld(id) })
	}
	return nil
}

// openOld opens a replica that an earlier process left. One that cannot be opened is told of and left alone. A
// half-formatted one is none: the node was killed while it was made, or removed, and the view service never heard of it, or
// has deleted it. It orders a new one if it wants one.
func (n *Node) openOld(id viewsvc.VolumeID) error {
	defer n.slot()()
	if n.ctx.Err() != nil {
		return nil
	}
	err := n.openReplica(id, viewsvc.Volume{})
	if err == nil || errors.Is(err, blockdev.ErrHalfFormatted) {
		return nil
	}
	return fmt.Errorf("node: replica in %s: %w", n.home.volumeDir(id), err)
}

// closeReplicas closes what was taken out of service, side by side.
func (n *Node) closeReplicas(desks map[viewsvc.VolumeID]*desk) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
	)
	for _, d := range desks {
		d.close()
		wg.Go(func() {
			defer n.slot()()
			if err := d.r.Close(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// renew carries out the order to have a replica that the view service knows nothing of. It may be that there is one which
// could not be opened when the node started.
func (n *Node) renew(o viewsvc.VolumeOrders, before error) error {
	id := o.Volume.ID
	switch {
	case n.replicaOf(id) != nil: // it was opened meanwhile
		return nil
	case before == nil || !n.home.has(id): // there is none, or it was moved away by hand
	case blockdev.Damaged(before):
		if err := n.setDamagedAside(o, before); err != nil {
			return err
		}
	default: // what kept it from being opened may have passed
		if err := n.openOld(id); err != nil || n.replicaOf(id) != nil {
			return err
		}
	}
	return n.makeReplica(o.Volume)
}
