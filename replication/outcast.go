package replication

import (
	"errors"
	"fmt"
	"net"
	"path"
	"time"

	"lockstep/viewsvc"
)

// An operator's act can make history go on without what a replica has committed: a forced promotion, or the resumption
// of a volume in sync mode flush after a total power failure. Such a replica can neither be cut back nor be brought up to
// date, its image has what never was. Its primary disowns it; its node sets its directory aside, whole, for whoever
// may want something out of it, and the view service then orders a new replica, which is filled like any other.
//
// A replica whose files were damaged while nobody had it open is set aside in the same way.

// disown tells the peer that it has what is not in this volume's history.
func (s *stream) disown(conn net.Conn) {
	s.r.mu.Lock()
	m := msg{Type: msgForeign, View: s.r.core.View().Num}
	s.r.mu.Unlock()
	if conn.SetWriteDeadline(s.r.rt.Now().Add(greetingTimeout)) == nil {
		_, _ = conn.Write(m.encode(nil)) // lost, it is sent again with the next connection
	}
}

// outcast is what a replica does that was disowned, or told to cut what is committed: it checks that an operator has done
// what can lead to that. Otherwise it stays as it is, an error for people to look at.
func (r *Replica) outcast() error {
	r.mu.Lock()
	v, mode := r.core.View(), r.hard.Volume.Sync
	known := r.core.State() == StateLearner && (v.DataLossGen > 0 || mode == viewsvc.SyncFlush)
	r.mu.Unlock()
	if known {
		r.opts.OnOutcast()
	}
	return errDiverged
}

// setAside takes a replica that was disowned out of service and moves its directory away.
func (n *Node) setAside(id viewsvc.VolumeID, r *Replica) error {
	if !n.takeOut(id, r) {
		return nil
	}
	name := r.Volume().Name
	if err := r.Close(); err != nil {
		n.opts.OnEvent(Event{Kind: EventStorage, Volume: name, Err: err}) // it is going to be moved all the same
	}
	aside, err := n.moveAside(id, "outcast."+string(r.ID()))
	if err != nil {
		return fmt.Errorf("node: set aside the replica of volume %s: %w", name, err)
	}
	n.opts.OnEvent(Event{Kind: EventOutcast, Volume: name, Replica: r.ID(), Text: "history went on without what this replica has; " +
		"it is kept in " + aside + ": remove that when nobody needs it"})
	return nil
}

// setDamagedAside moves the directory of a replica that cannot be opened, because of damage, out of the way of a new one.
// It is done only when nobody can need what may be left in it: when the volume has a view that goes on without it, which
// has everything that it acknowledged. Else the damage stays, as an error for people to look at.
func (n *Node) setDamagedAside(o viewsvc.VolumeOrders, damage error) error {
	if refused, ok := errors.AsType[*keptError](damage); ok {
		damage = refused.damage
	}
	if why := n.mayBeNeeded(o); why != "" {
		return &keptError{damage, why}
	}
	aside, err := n.moveAside(o.Volume.ID, "damaged."+time.Now().UTC().Format("20060102T150405Z"))
	if err != nil {
		return fmt.Errorf("node: set aside the damaged replica of volume %s: %w", o.Volume.Name, err)
	}
	n.opts.OnEvent(Event{Kind: EventOutcast, Volume: o.Volume.Name, Err: damage, Text: "a new replica takes the place of the damaged one, " +
		"which is kept in " + aside + ": remove that when nobody needs it"})
	return nil
}

// mayBeNeeded tells why the volume may not be able to do without this node's copy, "" if it is. Orders name the node of every
// member, so that nothing in the copy has to be believed.
func (n *Node) mayBeNeeded(o viewsvc.VolumeOrders) string {
	served := false
	for _, p := range o.Peers {
		if p.Node == n.opts.ID && o.View.Has(p.Replica) {
			return fmt.Sprintf("it is a member of view %d and stays as it is until others go on without it", o.View.Num)
		}
		served = served || p.Replica == o.View.Primary && p.Alive
	}
	if !served {
		return "it stays as it is until the volume has a primary that lives"
	}
	return ""
}

// keptError is the damage of a replica that was not set aside, and why it was not.
type keptError struct {
	damage error
	why    string
}

func (e *keptError) Error() string { return e.damage.Error() + "; " + e.why }
func (e *keptError) Unwrap() error { return e.damage }

// moveAside gives a replica's directory another name, for good.
func (n *Node) moveAside(id viewsvc.VolumeID, as string) (aside string, err error) {
	volumes := path.Join(n.home.dir, volumesDir)
	aside = path.Join(volumes, string(id)+"."+as)
	if err := n.opts.FS.Rename(n.home.volumeDir(id), aside); err != nil {
		return "", err
	}
	return aside, n.opts.FS.SyncDir(volumes)
}
