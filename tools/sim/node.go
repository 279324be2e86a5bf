package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"lockstep/blockdev"
	"lockstep/replication"
	"lockstep/viewsvc"
)

// pingLoop is Node.pingLoop.
func (m *machine) pingLoop(p *proc) {
	var last viewsvc.PingReply
	for !m.leaving {
		req := m.ping(p, last, false)
		if m.replica != nil {
			rep := m.replica.Report()
			m.c.checked(m, rep.Check)
			req.Replicas = append(req.Replicas, rep)
		}
		reply, err := m.c.views.ping(p, m.name, req)
		if errors.Is(err, viewsvc.ErrDuplicateNode) { // a late message of a former process: this one ends, and is started again
			m.w.after(0, func() {
				if m.p == p {
					m.kill()
					m.start()
				}
			})
			return
		}
		if err != nil {
			p.sleep(pingPause)
			continue
		}
		last = reply
		m.cluster = reply.Cluster
		for _, o := range reply.Volumes {
			m.told = o.View.Num
			m.obey(p, o)
		}
	}
}

// ping is Node.ping.
func (m *machine) ping(p *proc, last viewsvc.PingReply, bye bool) viewsvc.PingRequest {
	m.pings++
	return viewsvc.PingRequest{Cluster: m.cluster, Node: viewsvc.NodeID(m.name), Incarnation: p.name, PID: m.runs, Bye: bye,
		Addr: m.name + ":" + peerPort, NBD: m.name + ":" + clientPort, Seq: m.pings, Echo: last.Seq, News: last.News}
}

// obey is Node.obey.
func (m *machine) obey(p *proc, o viewsvc.VolumeOrders) {
	switch {
	case m.leaving:
	case m.replica != nil:
		m.replica.Orders(o)
	case o.Replica == "" && !o.Delete:
		if err := m.make(o.Volume); err != nil {
			m.w.tr("%s: %v", m.name, err)
			p.sleep(makePause)
		}
	}
}

// make formats a replica and opens it.
func (m *machine) make(v viewsvc.Volume) error {
	m.copies++
	m.empty = false
	err := blockdev.Format(m.fs, volumeDir, blockdev.FormatOptions{LogBytes: m.c.logBytes, SegmentBytes: m.c.segmentBytes,
		Identity: blockdev.Identity{Cluster: clusterID, Volume: string(volumeID), Replica: fmt.Sprintf("%s-%d", m.name, m.copies), Size: v.Size}})
	if errors.Is(err, blockdev.ErrExists) { // it was made, and could not be opened
		m.copies--
		err = nil
	}
	if err != nil {
		return err
	}
	return m.open(v)
}

func (m *machine) storageEvent(e blockdev.Event) {
	switch e := e.(type) {
	case blockdev.EventDiskFull:
		m.w.stats.note(diskFull)
	case blockdev.EventRepaired:
		m.w.stats.note(repaired)
	case blockdev.EventRecovered:
		if e.Torn {
			m.w.stats.note(tornTail)
		}
	}
	if m.w.trace != nil {
		m.w.tr("%s: %s", m.name, storageText(e))
	}
}

// storageText is an event without what differs from one run to the next.
func storageText(e blockdev.Event) string {
	switch e := e.(type) {
	case blockdev.EventRecovered:
		e.Took = 0
		return fmt.Sprintf("recovered %+v", e)
	case blockdev.EventScrubbed:
		e.Took = 0
		return fmt.Sprintf("scrubbed %+v", e)
	case blockdev.EventCheckpoint:
		return fmt.Sprintf("checkpoint at %d", e.LSN)
	default:
		return fmt.Sprintf("%T %+v", e, e)
	}
}

func (m *machine) event(p *proc, e replication.Event) {
	if p.dead {
		return
	}
	m.w.tr("%s: %s view %d %s peer %s %s %s", p.name, e.Kind, e.View, e.State, e.Peer, e.Text, errText(e.Err))
	switch e.Kind {
	case replication.EventState, replication.EventPropose, replication.EventCopy, replication.EventTailCut:
		m.c.nemesis.provoke(m)
	}
	switch e.Kind {
	case replication.EventTailCut:
		m.w.stats.note(tailCut)
	case replication.EventCopy:
		m.w.stats.note(regionCopy)
		if strings.HasPrefix(e.Text, "blocks") {
			m.w.stats.note(blockCopy)
		}
		if by := m.c.copying[e.Peer]; by != "" && by != e.Replica {
			m.w.stats.note(copySurvived)
		}
		m.c.copying[e.Peer] = e.Replica
	case replication.EventCaughtUp:
		m.w.stats.note(caughtUp)
		delete(m.c.copying, e.Peer)
	case replication.EventPoisoned:
		m.w.stats.note(poisoned)
	case replication.EventState:
		m.noteState(e)
	}
}

// noteState looks at what a replica became.
func (m *machine) noteState(e replication.Event) {
	if e.View > m.told {
		m.w.stats.note(staleHeard)
	}
	switch e.State {
	case replication.StateOpening.String():
		m.opening = m.w.now
		if marks := m.store.Marks(); marks.End > marks.Committed {
			m.w.stats.note(inheritedTail)
		}
	case replication.StateOpen.String():
		if m.c.leases && m.opening > 0 && m.w.now-m.opening > grantShown {
			m.w.stats.note(grantWaited)
		}
		if m.opening > 0 {
			m.c.opened(m, e.View)
		}
		m.opening = 0
	}
}

// grantShown is longer than a new primary takes to open when nothing is slow and no grant has to end.
const grantShown = 60 * time.Millisecond
