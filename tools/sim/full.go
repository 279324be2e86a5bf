package main

import (
	"path"
	"slices"
	"syscall"
	"time"

	"lockstep/wal/vfs/memfs"
)

// fullFiles are the files of a replica that take space as they are written. The log has all of its own.
var fullFiles = []string{"data.img", "data.crc", "regions"}

// noRoom is what a full disk says.
func (m *machine) noRoom(op memfs.Op) (e memfs.Effect) {
	if m.full > 0 && op.Kind == "write" && slices.Contains(fullFiles, path.Base(op.Name)) {
		e.Err = syscall.ENOSPC
	}
	return e
}

// full leaves no space on a machine's disk, or on all of them.
func (n *nemesis) full(m *machine) {
	machines := []*machine{m}
	if n.c.w.one(2) {
		machines = n.c.machines
	}
	for _, m := range machines {
		n.c.w.tr("the disk of %s is full", m.name)
		n.lasting(n.c.w.between(time.Second, 5*time.Second), func() { m.full++ }, func() {
			m.full--
			m.filled = n.c.w.now
			n.c.w.tr("the disk of %s has space again", m.name)
		})
	}
}

// fullPatience is how long a replica is full yet when its disk has space again: it applies what its log is full of.
const fullPatience = 2 * time.Second

// noSpace looks at a write that a primary has just refused for want of space: no other member has room.
func (c *cluster) noSpace(m *machine) {
	c.w.stats.note(refusedFull)
	for _, r := range c.views.current().Members() {
		if o := c.byReplica(r); o != nil && o.full == 0 && c.w.now-o.filled > fullPatience {
			c.w.fail("%s refuses a write for want of space, and member %s has room", m.name, o.name)
		}
	}
}
