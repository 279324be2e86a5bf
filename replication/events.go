package replication

import (
	"fmt"
	"time"

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
	EventDeleted    EventKind = "deleted"     // a replica was removed: the volume was deleted, or has enough copies
	EventOutcast    EventKind = "outcast"     // a replica that history went on without was set aside
	EventNoRoom     EventKind = "no_room"     // a replica cannot be made as large as the volume is to be: Err
	EventUnusable   EventKind = "unusable"    // a replica's directory cannot be opened
	EventViewLost   EventKind = "view_lost"   // the view service cannot be reached
	EventViewFound  EventKind = "view_found"  // it can be again
	EventStorage    EventKind = "storage"     // the storage of a replica failed

	// What the storage of a replica reports.
	EventRecovered    EventKind = "recovered"     // it was opened: Took
	EventCheckpoint   EventKind = "checkpoint"    // Took
	EventCorruptBlock EventKind = "corrupt_block" // a read met a bad block: Err
	EventBrokenFrame  EventKind = "broken_frame"  // a frame of the log went bad before it was applied
	EventRepaired     EventKind = "repaired"      // a bad block was made good
	EventGrown        EventKind = "grown"         // it became larger
	EventScrubbed     EventKind = "scrubbed"      // everything was read and compared once
	EventDiskFull     EventKind = "disk_full"     // the disk has no space for what is in the log: Err
	EventNoHoles      EventKind = "no_holes"      // the file system gives no space back
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
	Took    time.Duration
	Err     error
}

// storageEvent is what a replica's store reports, as one of the node's events.
func storageEvent(volume string, e blockdev.Event) Event {
	out := Event{Kind: EventStorage, Volume: volume}
	switch e := e.(type) {
	case blockdev.EventPoisoned:
		out.Err = e.Err
	case blockdev.EventCorruptBlock:
		out.Kind, out.Err = EventCorruptBlock, e.Err
	case blockdev.EventRecovered:
		out.Kind, out.Took = EventRecovered, e.Took
		out.Text = recoveredText(e)
	case blockdev.EventCheckpoint:
		out.Kind, out.Took, out.Text = EventCheckpoint, e.Took, fmt.Sprintf("record %d", e.LSN)
	case blockdev.EventRepaired:
		out.Kind, out.Text = EventRepaired, fmt.Sprintf("block %d", e.Block)
	case blockdev.EventBrokenFrame:
		out.Kind, out.Text = EventBrokenFrame, fmt.Sprintf("records %d to %d, %d of %d blocks are lost here", e.First, e.Last, e.Lost, e.Blocks)
	case blockdev.EventGrown:
		out.Kind, out.Text = EventGrown, fmt.Sprintf("from %d to %d bytes", e.From, e.To)
	case blockdev.EventScrubbed:
		out.Kind, out.Took = EventScrubbed, e.Took
		out.Text = fmt.Sprintf("%d blocks and %d frames of the log were read, %d were bad, %d repaired", e.Blocks, e.Frames, e.Bad, e.Repaired)
	case blockdev.EventDiskFull:
		out.Kind, out.Err = EventDiskFull, e.Err
	case blockdev.EventNoHoles:
		out.Kind = EventNoHoles
		out.Text = "the file system of " + e.Dir + " punches no holes: trims write zeroes and give no space back"
	default:
		out.Text = fmt.Sprintf("%T %+v", e, e)
	}
	return out
}

// recoveredText says what a store found when it was opened.
func recoveredText(e blockdev.EventRecovered) string {
	text := fmt.Sprintf("records %d to %d were behind the checkpoint", e.Checkpoint+1, e.End)
	if e.End == e.Checkpoint {
		text = fmt.Sprintf("everything up to record %d was in the image", e.End)
	}
	if e.Committed < e.End {
		text += fmt.Sprintf(", committed is known up to %d", e.Committed)
	}
	if !e.Clean {
		text += ", no clean stop came before"
	}
	if e.Torn {
		text += ", a torn tail was cut"
	}
	return text
}
