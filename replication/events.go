package replication

import (
	"fmt"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// EventKind says what happened. The names are stable: logs and `lockstep events` show them.
type EventKind string

// The events of a node.
const (
	EventState      EventKind = "state"       // a replica changed its state
	EventStreamUp   EventKind = "stream_up"   // a primary reached a peer
	EventStreamDown EventKind = "stream_down" // a stream ended
	EventCopy       EventKind = "copy"        // a learner is copied region by region
	EventCaughtUp   EventKind = "caught_up"   // a learner has everything and is proposed
	EventTailCut    EventKind = "tail_cut"    // an uncommitted tail that is not history was cut
	EventPoisoned   EventKind = "poisoned"    // a replica's storage failed
	EventPropose    EventKind = "propose"     // a view was asked for
	EventFormatted  EventKind = "formatted"   // a new replica was made
	EventDeleted    EventKind = "deleted"     // a replica of a deleted volume was removed
	EventUnusable   EventKind = "unusable"    // a replica's directory cannot be opened
	EventViewLost   EventKind = "view_lost"   // the view service cannot be reached
	EventViewFound  EventKind = "view_found"  // it can be again
	EventStorage    EventKind = "storage"     // something that the storage of a replica reports
)

// Event is something that an operator may want to know. Err is set where something went wrong.
type Event struct {
	Kind    EventKind
	Volume  string // name, or ID where the name is not known
	Replica viewsvc.ReplicaID
	Peer    viewsvc.ReplicaID
	View    viewsvc.ViewNum
	State   string
	Text    string
	Err     error
}

// storageEvent is what a replica's store reports, as one of the node's events.
func storageEvent(volume string, e blockdev.Event) Event {
	out := Event{Kind: EventStorage, Volume: volume}
	switch e := e.(type) {
	case blockdev.EventPoisoned:
		out.Err = e.Err
	case blockdev.EventCorruptBlock:
		out.Err = e.Err
	case blockdev.EventNoHoles:
		out.Text = "the file system of " + e.Dir + " punches no holes: trims write zeroes and give no space back"
	default:
		out.Text = fmt.Sprintf("%T %+v", e, e)
	}
	return out
}
