package gateway

import (
	"fmt"
	"time"

	"lockstep/blockdev/nbd"
	"lockstep/viewsvc"
)

// EventKind says what happened.
type EventKind uint8

// The kinds of event.
const (
	EventClient    EventKind = iota + 1 // a client came, went or was refused: Client has it
	EventRoute                          // a volume in use has another primary: View, Addr ("" while there is none)
	EventUp                             // a session is connected: Addr; Requests were sent again; After is how long it was not
	EventDown                           // a session lost its connection: Addr, Err; Requests are kept
	EventRetry                          // connecting failed, for the first time since the session was up or the route moved: Err
	EventExpired                        // Requests were answered with an I/O error, having waited for Timeout
	EventFencing                        // a session ended with Requests on their way that may still change the disk (G5)
	EventFenced                         // they cannot any more; After is how long their ranges were kept
	EventGone                           // a volume in use was deleted: its sessions end
	EventViewsDown                      // the view service does not answer about a volume in use: Err. I/O goes on
	EventViewsUp                        // it does again
	EventClaimed                        // a client has a volume to itself
	EventReleased                       // it has it no more. Err: the view service could not be told, the next one has to take over
	EventEvicted                        // a session was ended for good by a take-over or an operator: Err
	EventGrown                          // a volume in use is larger now: Size
	EventStopped                        // the listener failed: Err. There will be no new clients
)

func (k EventKind) String() string {
	switch k {
	case EventClient:
		return "client"
	case EventRoute:
		return "route"
	case EventUp:
		return "up"
	case EventDown:
		return "down"
	case EventRetry:
		return "retry"
	case EventExpired:
		return "expired"
	case EventFencing:
		return "fencing"
	case EventFenced:
		return "fenced"
	case EventGone:
		return "gone"
	case EventViewsDown:
		return "views_down"
	case EventViewsUp:
		return "views_up"
	case EventClaimed:
		return "claimed"
	case EventReleased:
		return "released"
	case EventEvicted:
		return "evicted"
	case EventGrown:
		return "grown"
	case EventStopped:
		return "stopped"
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event tells what a gateway did. Fields that a kind does not mention may be zero. Events of one session come in
// order.
type Event struct {
	Kind       EventKind
	Volume     string
	Session    string // the identity by which nodes know it
	Generation uint64
	View       viewsvc.ViewNum
	Addr       string // of the primary
	Requests   int
	Size       uint64 // bytes
	After      time.Duration
	Err        error
	Client     nbd.Event
}
