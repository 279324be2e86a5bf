package viewsvc

import (
	"bytes"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/google/uuid"
)

// probeTimeout bounds a connection attempt: a machine that is there answers within a round trip.
const probeTimeout = 500 * time.Millisecond

// applied is called for every committed command, on every server.
func (s *Server) applied(cmd Command) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	result, err := s.state.Apply(cmd)
	if err == nil && s.mon != nil {
		s.mon.Changed(cmd, result)
		s.flushLocked()
	}
	return result, err
}

// restored replaces the state by that of a snapshot, which only a server does that does not lead.
func (s *Server) restored(state *State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.state = *state
}

// flushLocked passes on what the Monitor wants done. mu is held.
func (s *Server) flushLocked() {
	out := s.mon.Take()
	if out.News || len(out.Events) > 0 {
		s.broadcastLocked()
	}
	if len(out.Commands)+len(out.Probes) > 0 {
		s.todo.add(task{s.mon, out.Commands, out.Probes})
	}
	for _, e := range out.Events {
		s.noteLocked(e)
	}
}

func (s *Server) broadcastLocked() {
	close(s.news)
	s.news = make(chan struct{})
}

// withMonitor runs f on the Monitor, if this server leads, and passes on what comes of it.
func (s *Server) withMonitor(f func(*Monitor) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mon == nil {
		return s.notLeader()
	}
	err := f(s.mon)
	s.flushLocked()
	return err
}

// withSameMonitor is for what belongs to one time of leading only.
func (s *Server) withSameMonitor(mon *Monitor, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mon == mon {
		f()
		s.flushLocked()
	}
}

// followLeadership makes a Monitor whenever this server becomes the leader, and drops it when it is not any more.
func (s *Server) followLeadership() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case leads := <-s.cons.raft.LeaderCh():
			s.abdicate()
			for leads && s.ctx.Err() == nil && !s.takeOffice() {
				// The barrier failed: leadership was lost again, or the log is stuck. Look at the newest word.
				select {
				case leads = <-s.cons.raft.LeaderCh():
				case <-time.After(commitTimeout):
				case <-s.ctx.Done():
				}
			}
		}
	}
}

// takeOffice waits until everything committed before is applied here: from then on the views that this server
// announces are the newest.
func (s *Server) takeOffice() bool {
	term := s.cons.raft.CurrentTerm()
	if s.cons.raft.Barrier(barrierTimeout).Error() != nil {
		return false
	}
	if s.Cluster() == "" {
		if _, err := s.cons.apply(Command{Op: OpInit, Cluster: uuid.NewString()}); err != nil {
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mon = NewMonitor(s.state, s.opt.monitor(term))
	s.flushLocked()
	s.noteLocked(Event{Kind: EventLeading, Text: "view server " + s.opt.ID + ", cluster " + s.state.Cluster()})
	s.broadcastLocked()
	return true
}

func (s *Server) abdicate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mon == nil {
		return
	}
	s.mon = nil
	s.broadcastLocked() // held requests are to look elsewhere
	s.recent.list = nil // another server's events are the ones that count now
	s.noteLocked(Event{Kind: EventFollowing})
}

// tick is the Monitor's clock. A tick that is late by PauseAfter says that this process did not run, so that
// others' silence means nothing (hazard 8).
func (s *Server) tick() {
	t := time.NewTicker(s.opt.Tick)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-t.C:
			// The ticker's own time is from before a pause; ask again.
			if n := time.Now(); n.After(now) {
				now = n
			}
			late := now.Sub(last) > s.opt.PauseAfter
			last = now
			s.withMonitor(func(m *Monitor) error { m.Tick(late); return nil })
		}
	}
}

// task is what a Monitor wants done.
type task struct {
	mon      *Monitor
	commands []KeyedCommand
	probes   []Probe
}

// perform starts what the Monitor wants done. It never blocks.
func (s *Server) perform() {
	for t := range s.todo.all(s.ctx) {
		for _, c := range t.commands {
			s.wg.Go(func() { s.commit(t.mon, c) }) // one per key at a time; ends by its outcome or Raft's shutdown
		}
		for _, p := range t.probes {
			s.wg.Go(func() { s.probe(t.mon, p) }) // one per node at a time; ends by probeTimeout
		}
	}
}

// tell passes events on. It has a goroutine of its own: a log that nobody reads must not hold up a failover.
func (s *Server) tell() {
	for e := range s.events.all(s.ctx) {
		s.opt.OnEvent(e)
	}
}

func (s *Server) commit(mon *Monitor, c KeyedCommand) {
	if c.Command.Op == OpView {
		c.Command.Time = time.Now().UTC()
	}
	_, err := s.cons.apply(c.Command)
	s.withSameMonitor(mon, func() { mon.Done(c.Key, err) })
}

func (s *Server) probe(mon *Monitor, p Probe) {
	if p.Delay > 0 {
		t := time.NewTimer(p.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
	}
	d := net.Dialer{Timeout: probeTimeout}
	conn, err := d.DialContext(s.ctx, "tcp", p.Addr)
	outcome := ProbeFailed
	switch {
	case err == nil:
		outcome = ProbeConnected
		conn.Close()
	case errors.Is(err, syscall.ECONNREFUSED):
		outcome = ProbeRefused
	}
	s.withSameMonitor(mon, func() { mon.Probed(p, outcome) })
}

// raftLog turns the Raft library's log lines into events.
type raftLog struct{ events *queue[Event] }

func (l raftLog) Write(p []byte) (int, error) {
	l.events.add(Event{Kind: EventRaft, Text: string(bytes.TrimSpace(p))})
	return len(p), nil
}
