package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"lockstep/blockdev/nbd"
)

// Backend is the storage behind a device for the life of one socket. It is not used for two: what an earlier socket
// left behind has to be fenced before the next one is served (K5), and that is done by making a new Backend.
type Backend interface {
	// Disk is what the kernel is told: bytes, and what the server can do. The flags are looked at when the device is made,
	// not when it goes on.
	Disk() (size uint64, flags nbd.TransmissionFlags)
	// Grown gets a value when the size has become larger: a hint to look at once.
	Grown() <-chan struct{}
	// Start takes a connection over, on which the kernel is going to be served. It returns when the storage has let
	// this client in, or has refused it: the kernel gets its end afterwards.
	Start(conn net.Conn) error
	// Wait waits for the end of the connection. ErrGoodbye says that the kernel ended it with NBD_CMD_DISC; an error
	// that wraps ErrGone that there is nothing to serve any more.
	Wait() error
	// Close ends Start and Wait, also those that are yet to begin, having waited a little for requests in flight, and
	// gives everything back. It may be called twice.
	Close()
}

// Why a Backend ended, or refused to begin.
var (
	ErrGoodbye = errors.New("kernel: the device was detached")
	ErrGone    = errors.New("kernel: the disk is gone")
)

// errNotTaken says that the kernel had no use for a socket yet (K4).
var errNotTaken = errors.New("kernel: the driver has not given up the former socket yet")

// AgentOptions say what an Agent does.
type AgentOptions struct {
	Driver Driver
	Index  int // of the device; AnyIndex for any that is free
	// Resume says that the device is there already, from an agent that ended without detaching it. If it turns out
	// not to be, it is made.
	Resume bool
	// Config is of the device, without the size and flags, which the backend knows.
	Config Config

	// Open makes a backend. It fences what the one before it did (K5). The first one's error ends the agent unless
	// there is a device that waits; later, and then, it is called until it succeeds.
	Open func(context.Context) (Backend, error)
	// Attached is called before the first request is served, each time: with the device's number, and whether it
	// went on from an earlier socket. Its error ends the agent, and detaches a device that it has just made.
	Attached func(index int, resumed bool) error
	// Resized is called when the driver was told that a device which is served is larger now. nil is allowed.
	Resized func(index int, size uint64)

	// LinkDead gets the number of a device whose socket the kernel gave up (Netlink.Watch): a hint to look at once. nil
	// is allowed.
	LinkDead <-chan int

	// OnEvent is told what happens; it must not block. nil is allowed.
	OnEvent func(Event)
}

// Validate fills in defaults and checks the rest.
func (o *AgentOptions) Validate() error {
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.Attached == nil {
		o.Attached = func(int, bool) error { return nil }
	}
	if o.Resized == nil {
		o.Resized = func(int, uint64) {}
	}
	switch {
	case o.Driver == nil || o.Open == nil:
		return errors.New("kernel: AgentOptions need a Driver and an Open")
	case o.Index < AnyIndex, o.Resume && o.Index == AnyIndex:
		return fmt.Errorf("kernel: no device %d", o.Index)
	}
	return nil
}

// How long an agent waits before it tries again. The first wait is what a kernel needs to notice a dead socket.
const (
	retryMin = 10 * time.Millisecond
	retryMax = time.Second
	// steadyAfter is how long a socket must last, so that its end is no failed attempt.
	steadyAfter = 10 * time.Second
	// lookEvery is how often it is looked whether the kernel has hung up on a backend that does not notice, and whether the
	// device is as large as its disk.
	lookEvery = time.Second
)

// agentState is where an Agent is.
type agentState uint8

const (
	// stateNone: no device. Next: stateServing by Connect.
	stateNone agentState = iota
	// stateWaiting: the device has no socket, its requests wait. Next: stateServing by Reconfigure; stateNone when
	// the driver says that there is no such device and none was ever served; stateOver.
	stateWaiting
	// stateServing: the device has a socket that is served. Next: stateWaiting when it ends, stateOver.
	stateServing
	// stateOver: the agent has nothing to do any more. Last.
	stateOver
)

// Agent is the life of one device. It has one goroutine, Run's caller.
type Agent struct {
	o     AgentOptions
	state agentState
	index int
	size  uint64 // that the kernel was told

	served  bool // a socket of the device was served by this agent
	waiting time.Time
	retry   time.Duration
	told    bool // EventRetry, in this row of failures
}

// NewAgent makes an agent that has done nothing yet.
func NewAgent(o AgentOptions) (*Agent, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{o: o, index: o.Index, waiting: time.Now()}
	if o.Resume {
		a.state = stateWaiting
	}
	return a, nil
}

// Run attaches the device and serves it. It returns nil when the device was detached, ctx's error when ctx ended (the
// device then waits for the next agent, K8), and an error that wraps ErrGone when there is nothing to serve any more
// (the device is detached then, and its requests fail).
func (a *Agent) Run(ctx context.Context) error {
	for a.state != stateOver {
		backend, err := a.o.Open(ctx)
		if err != nil {
			if err = a.refused(ctx, err); err != nil {
				return err
			}
			continue
		}
		err = a.live(ctx, backend)
		backend.Close()
		if err != nil {
			return err
		}
	}
	a.o.OnEvent(Event{Kind: EventDetached, Index: a.index})
	return nil
}

// live gives the device a socket and serves it until it ends.
func (a *Agent) live(ctx context.Context, b Backend) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	if err = b.Start(ours); err != nil {
		theirs.Close()
		return a.refused(ctx, err)
	}
	resumed := a.state == stateWaiting
	err = a.link(b, theirs)
	theirs.Close()
	if err == nil && !taken(ours) {
		err = errNotTaken
	}
	switch {
	case errors.Is(err, errNotTaken):
		a.pause(ctx, err)
		return nil
	case errors.Is(err, ErrUnsupported):
		return err // the device is lost, and its requests have failed
	case errors.Is(err, ErrNotConfigured) && resumed && !a.served:
		a.state = stateNone // it was of an earlier agent, and is gone: a reboot, a detach
		return nil
	case errors.Is(err, ErrNotConfigured) && resumed:
		a.state = stateOver // somebody detached it while it had no socket
		return nil
	case err != nil:
		return err
	}
	if err := a.o.Attached(a.index, resumed); err != nil {
		if !resumed {
			err = errors.Join(err, a.o.Driver.Disconnect(a.index))
		}
		return err
	}
	kind := EventAttached
	if resumed {
		kind = EventResumed
	}
	a.o.OnEvent(Event{Kind: kind, Index: a.index, After: time.Since(a.waiting)})
	a.state, a.served, a.told = stateServing, true, false
	return a.serve(ctx, b, ours)
}

// refused is what a backend's failure to begin means.
func (a *Agent) refused(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, ErrGone):
		return a.giveUp(err)
	case ctx.Err() != nil:
		return a.leave(ctx)
	case a.state == stateNone:
		return err
	}
	a.pause(ctx, err)
	return nil
}

// link hands the kernel its end.
func (a *Agent) link(b Backend, theirs *os.File) (err error) {
	c := a.o.Config
	c.Size, c.Flags = b.Disk()
	a.size = c.Size
	if a.state == stateWaiting {
		return a.o.Driver.Reconfigure(a.index, c.Identifier, c.Size, theirs)
	}
	a.index, err = a.o.Driver.Connect(a.o.Index, c, theirs)
	return err
}

// serve runs the backend on the socket, and decides what its end means.
func (a *Agent) serve(ctx context.Context, b Backend, conn net.Conn) error {
	since := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- b.Wait() }() // ends with the connection, which Close sees to
	err := a.watch(ctx, b, conn, ended)
	a.waiting = time.Now()
	switch {
	case errors.Is(err, ErrGoodbye):
		a.state = stateOver // K7
	case errors.Is(err, ErrGone):
		return a.giveUp(err)
	case ctx.Err() != nil:
		a.state = stateWaiting
		return a.leave(ctx)
	default:
		a.state = stateWaiting
		if time.Since(since) > steadyAfter {
			a.retry = 0
		}
		a.o.OnEvent(Event{Kind: EventInterrupted, Index: a.index, Err: err})
		a.wait(ctx)
	}
	return nil
}

// watch waits for the end of a socket, and brings it about when nobody wants it any more. A backend whose storage does
// not answer would wait for it, though the kernel has long gone.
func (a *Agent) watch(ctx context.Context, b Backend, conn net.Conn, ended <-chan error) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			b.Close() // K8
			return <-ended
		case index := <-a.o.LinkDead:
			if index != a.index || taken(conn) { // of the socket before, most likely
				continue
			}
			a.o.OnEvent(Event{Kind: EventLinkDead, Index: index})
		case <-b.Grown():
			a.grow(b)
			continue
		case <-tick.C:
			if taken(conn) {
				a.grow(b)
				continue
			}
		}
		b.Close()
		return <-ended
	}
}

// grow makes the device as large as its disk, and never larger (K10). What fails is tried again when it is looked next.
func (a *Agent) grow(b Backend) {
	size, _ := b.Disk()
	if size <= a.size {
		return
	}
	if err := a.o.Driver.Resize(a.index, a.o.Config.Identifier, size); err != nil {
		a.tell(err)
		return
	}
	a.size, a.told = size, false
	a.o.Resized(a.index, size)
	a.o.OnEvent(Event{Kind: EventResized, Index: a.index, Size: size})
}

// leave ends the agent and not the device.
func (a *Agent) leave(ctx context.Context) error {
	if a.state != stateNone {
		a.o.OnEvent(Event{Kind: EventLeft, Index: a.index})
	}
	return ctx.Err()
}

// giveUp ends the device too: nobody could serve it.
func (a *Agent) giveUp(err error) error {
	if a.state != stateNone {
		a.state = stateOver
		err = errors.Join(err, a.o.Driver.Disconnect(a.index))
	}
	return err
}

// pause waits after a failure.
func (a *Agent) pause(ctx context.Context, err error) {
	if !errors.Is(err, errNotTaken) {
		a.tell(err)
	}
	a.wait(ctx)
}

// tell tells of a failure, if it is the first in a row.
func (a *Agent) tell(err error) {
	if !a.told {
		a.told = true
		a.o.OnEvent(Event{Kind: EventRetry, Index: a.index, Err: err})
	}
}

func (a *Agent) wait(ctx context.Context) {
	a.retry = min(max(2*a.retry, retryMin), retryMax)
	t := time.NewTimer(a.retry)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
