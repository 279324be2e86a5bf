package kernel

import (
	"fmt"
	"time"
)

// EventKind says what happened to a device.
type EventKind uint8

// The kinds of event.
const (
	EventAttached    EventKind = iota + 1 // the device is there: Index
	EventResumed                          // a device of an earlier agent, or socket, goes on: Index, After is how long it waited for this agent
	EventLinkDead                         // the kernel gave the device's socket up: Index
	EventInterrupted                      // the socket ended without a goodbye: Index, Err. The device gets another one
	EventRetry                            // giving the device a socket, or its disk's size, failed, for the first time in a row: Index, Err
	EventResized                          // the device is larger now: Index, Size
	EventDetached                         // somebody detached the device: Index
	EventLeft                             // the agent stops, the device waits for the next one: Index
)

func (k EventKind) String() string {
	switch k {
	case EventAttached:
		return "attached"
	case EventResumed:
		return "resumed"
	case EventLinkDead:
		return "link_dead"
	case EventInterrupted:
		return "interrupted"
	case EventRetry:
		return "retry"
	case EventResized:
		return "resized"
	case EventDetached:
		return "detached"
	case EventLeft:
		return "left"
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event tells what an Agent did. Fields that a kind does not mention may be zero.
type Event struct {
	Kind  EventKind
	Index int
	After time.Duration
	Size  uint64 // bytes
	Err   error
}
