package viewsvc

import "time"

// probeDelays are the waits before each attempt to connect to a node whose ping connection broke: a process that
// is being killed may still have its listening socket when its other sockets are closed already.
var probeDelays = [...]time.Duration{0, 5 * time.Millisecond, 15 * time.Millisecond, 30 * time.Millisecond, 50 * time.Millisecond}

// peerProbeDelay is the wait before a node is probed that another replica calls dead: longer than PingHold, so
// that a living node's next ping voids the suspicion.
const peerProbeDelay = 150 * time.Millisecond

// Probe asks the driver to connect to a node's address after Delay and to tell Probed the outcome.
type Probe struct {
	Node        NodeID
	Addr        string
	Delay       time.Duration
	incarnation string
	lives       uint64
	attempt     int
	fromPeer    bool
}

// ProbeOutcome is what came of a Probe.
type ProbeOutcome int

// The outcomes of a probe.
const (
	ProbeConnected ProbeOutcome = iota + 1 // something listens there
	ProbeRefused                           // the machine is there, and nothing listens
	ProbeFailed                            // nothing is known: a timeout, no route
)

// Broken tells that the ping connection of a node's process broke. That proves nothing by itself.
func (m *Monitor) Broken(id NodeID, incarnation string) {
	n := m.nodes[id]
	if n == nil || n.incarnation != incarnation || n.gone != "" {
		return
	}
	n.probing = true
	m.probe(Probe{Node: id, Addr: n.addr, Delay: probeDelays[0], incarnation: incarnation, lives: n.lives})
}

// suspect looks into a member's report that a node refuses its connections.
func (m *Monitor) suspect(n *nodeWatch) {
	if n == nil || n.incarnation == "" || n.gone != "" || n.probing {
		return
	}
	n.probing = true
	m.probe(Probe{Node: n.id, Addr: n.addr, Delay: peerProbeDelay, incarnation: n.incarnation, lives: n.lives, fromPeer: true})
}

func (m *Monitor) probe(p Probe) { m.out.Probes = append(m.out.Probes, p) }

// Probed takes the outcome of a probe. Refusal kills only a node of which nothing was heard since the suspicion; after a
// sign of life the question is asked anew, for the process may have been killed right behind it.
func (m *Monitor) Probed(p Probe, outcome ProbeOutcome) {
	n := m.nodes[p.Node]
	if n == nil || n.incarnation != p.incarnation || n.gone != "" {
		return
	}
	n.probing = false
	if outcome == ProbeRefused && n.lives == p.lives {
		m.bury(n, "refuses connections")
		m.settleAll()
		return
	}
	if next := p.attempt + 1; !p.fromPeer && next < len(probeDelays) {
		n.probing = true
		p.attempt, p.Delay, p.lives = next, probeDelays[next], n.lives
		m.probe(p)
	}
}
