package viewsvc

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// maxRecentEvents is how many of its own events a leader remembers. Views are remembered for longer, and by all: in the
// volumes' histories.
const maxRecentEvents = 1024

// RecentEvent is an event of the leader, as it tells of it. Numbers grow, from leader to leader too.
type RecentEvent struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"` // of the leader's clock
	Kind    EventKind `json:"kind"`
	Volume  string    `json:"volume,omitempty"` // its name, or the ID of one that is gone
	Node    NodeID    `json:"node,omitempty"`
	Replica ReplicaID `json:"replica,omitempty"`
	View    ViewNum   `json:"view,omitempty"`
	Tenure  ViewNum   `json:"tenure,omitempty"`
	Change  Kind      `json:"change,omitempty"`
	Primary NodeID    `json:"primary,omitempty"`
	Backups []NodeID  `json:"backups,omitempty"`
	Text    string    `json:"text,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// recentEvents is the memory of one time of leading. The Server's mu guards it.
type recentEvents struct {
	last uint64
	list []RecentEvent // oldest first
}

// noteLocked remembers an event and passes it on. s.mu is held.
func (s *Server) noteLocked(e Event) {
	s.events.add(e)
	if e.Kind == EventRaft || e.Kind == EventFollowing {
		return
	}
	r := &s.recent
	r.last = max(r.last, s.cons.raft.CurrentTerm()<<32) + 1
	out := RecentEvent{
		Seq: r.last, Time: time.Now().UTC(), Kind: e.Kind, Volume: string(e.Volume), Node: e.Node, Replica: e.Replica,
		View: e.View.Num, Tenure: e.View.Tenure, Change: e.Change, Text: e.Text,
	}
	if e.Err != nil {
		out.Error = e.Err.Error()
	}
	if v := s.state.volumes[e.Volume]; v != nil {
		out.Volume = v.Volume.Name
		out.Primary = v.Replicas[e.View.Primary]
		for _, b := range e.View.Backups {
			out.Backups = append(out.Backups, v.Replicas[b])
		}
	}
	if len(r.list) >= maxRecentEvents {
		r.list = slices.Delete(r.list, 0, maxRecentEvents/4)
	}
	r.list = append(r.list, out)
}

// handleEvents answers with the events after a number; with hold=1 it waits until there is one, WatchHold at most.
func (s *Server) handleEvents(r *http.Request, _ none) ([]RecentEvent, error) {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		after = 0 // from the first one that is remembered
	}
	wait := time.Duration(0)
	if r.URL.Query().Get("hold") == "1" {
		wait = WatchHold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdLocked(r.Context(), wait, func(*Monitor) bool { return wait > 0 && s.recent.last <= after }); err != nil {
		return nil, err
	}
	i, _ := slices.BinarySearchFunc(s.recent.list, after+1, func(e RecentEvent, seq uint64) int {
		switch {
		case e.Seq < seq:
			return -1
		case e.Seq > seq:
			return 1
		}
		return 0
	})
	return append([]RecentEvent{}, s.recent.list[i:]...), nil
}
