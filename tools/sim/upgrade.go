package main

// Nodes of two releases: those of the other one speak another version of the protocol between replicas, by its magic. They
// refuse each other's streams, and the view service sees all of them live.

// upgrade stops a node's process in good order and starts it as the other release.
func (n *nemesis) upgrade(m *machine) {
	p := m.p
	if p == nil {
		return
	}
	n.during(m.stop, func() {
		if m.p == p {
			m.kill() // it takes its time
		}
		m.release = 1 - m.release
		n.c.w.tr("%s has release %d now", m.name, m.release)
		m.start()
	})
}

// sameRelease ends an upgrade: all nodes have the newer release.
func (n *nemesis) sameRelease() {
	mixed := false
	for _, m := range n.c.machines {
		mixed = mixed || m.release != n.c.machines[0].release
	}
	if !mixed {
		return
	}
	for _, m := range n.c.machines {
		if m.release == 0 {
			m.kill()
			m.release = 1
			m.start()
		}
	}
}

// meet tells two ends of a stream whether they speak the same version.
func (c *cluster) meet(e *endpoint) {
	var releases [2]int
	for _, m := range c.machines {
		if m.name == e.host {
			releases[0] = m.release
		}
		if m.name == e.peer.host {
			releases[1] = m.release
		}
	}
	if e.foreign = releases[0] != releases[1]; e.foreign {
		e.peer.foreign = true
		c.w.stats.note(foreignRelease)
	}
}
