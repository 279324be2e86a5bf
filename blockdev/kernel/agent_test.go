package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lockstep/blockdev/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// life is a Backend that answers every request with success, as far as the tests need it. The disk grows from one to the
// next.
type life struct {
	number int
	stuck  bool  // Wait notices nothing before Close
	refuse error // what Start returns

	grown chan struct{}

	mu   sync.Mutex
	more uint64 // bytes that the disk has grown by
	conn net.Conn
	end  error // instead of what the socket says
	done chan struct{}
}

func (l *life) Disk() (uint64, nbd.TransmissionFlags) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(l.number)<<30 + l.more, nbd.FlagHasFlags
}

func (l *life) Grown() <-chan struct{} { return l.grown }

// grow makes the disk larger.
func (l *life) grow(bytes uint64) {
	l.mu.Lock()
	l.more += bytes
	l.mu.Unlock()
	l.grown <- struct{}{}
}

func (l *life) Start(conn net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	if l.refuse != nil {
		conn.Close()
	}
	return l.refuse
}

func (l *life) Wait() error {
	conn := l.conn
	defer conn.Close()
	if l.stuck {
		<-l.done
	}
	for {
		b := make([]byte, 28)
		if _, err := io.ReadFull(conn, b); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.end != nil {
				return l.end
			}
			return err
		}
		if b[7] == 2 {
			return ErrGoodbye
		}
		reply := binary.BigEndian.AppendUint32(nil, 0x67446698)
		reply = binary.BigEndian.AppendUint32(reply, uint32(l.number)) // an error number that says who answered
		if _, err := conn.Write(append(reply, b[8:16]...)); err != nil {
			return err
		}
	}
}

func (l *life) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	if l.conn != nil {
		l.conn.Close()
	}
}

// endWith makes Wait return an error.
func (l *life) endWith(err error) {
	l.mu.Lock()
	l.end = err
	l.mu.Unlock()
	l.Close()
}

// rig is an agent that runs against a fake kernel.
type rig struct {
	t      *testing.T
	k      *fakeKernel
	lives  chan *life
	events chan Event
	stop   context.CancelFunc
	over   chan error
}

// run starts an agent; adjust may change its options.
func run(t *testing.T, k *fakeKernel, adjust func(*AgentOptions, *rig)) *rig {
	t.Helper()
	r := &rig{t: t, k: k, lives: make(chan *life, 16), events: make(chan Event, 64), over: make(chan error, 1)}
	d := k.open(t)
	dead := make(chan int, 4)
	unwatch, err := d.Watch(func(index int) { dead <- index })
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	o := AgentOptions{
		Driver: d, Index: AnyIndex, Config: exampleConfig, LinkDead: dead,
		Open: func(context.Context) (Backend, error) {
			n++
			l := &life{number: n, done: make(chan struct{}), grown: make(chan struct{})}
			r.lives <- l
			return l, nil
		},
		OnEvent: func(e Event) { r.events <- e },
	}
	if adjust != nil {
		adjust(&o, r)
	}
	a, err := NewAgent(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.over <- a.Run(ctx) }() // ends by stop at the latest
	t.Cleanup(func() {
		stop()
		unwatch()
	})
	return r
}

// await waits for an event of a kind, past others.
func (r *rig) await(kind EventKind) Event {
	r.t.Helper()
	for {
		select {
		case e := <-r.events:
			if e.Kind == kind {
				return e
			}
		case err := <-r.over:
			if r.over <- err; len(r.events) == 0 { // the channel has room for one
				r.t.Fatalf("the agent ended without %v: %v", kind, err)
			}
		case <-time.After(hangGuard):
			r.t.Fatalf("no event %v", kind)
		}
	}
}

// ended waits for the agent's end.
func (r *rig) ended() error {
	r.t.Helper()
	select {
	case err := <-r.over:
		return err
	case <-time.After(hangGuard):
		r.t.Fatal("the agent does not end")
		return nil
	}
}

// answeredBy sends a request as the kernel does and returns the number of the life that answers.
func (r *rig) answeredBy(index int) int {
	r.t.Helper()
	b := make([]byte, 28)
	binary.BigEndian.PutUint32(b, 0x25609513)
	sock := r.k.device(index).sock
	if _, err := sock.Write(b); err != nil {
		r.t.Fatal(err)
	}
	sock.SetReadDeadline(time.Now().Add(hangGuard))
	if _, err := io.ReadFull(sock, b[:16]); err != nil {
		r.t.Fatal(err)
	}
	return int(binary.BigEndian.Uint32(b[4:]))
}

func TestDetachIsAGoodEnd(t *testing.T) {
	r := run(t, newFakeKernel(t), nil)
	index := r.await(EventAttached).Index
	if n := r.answeredBy(index); n != 1 {
		t.Errorf("life %d answers", n)
	}
	if err := r.k.open(t).Disconnect(index); err != nil {
		t.Fatal(err)
	}
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	r.await(EventDetached) // told before the end
}

// A socket that ends without a goodbye is replaced, behind a new backend (K5, K7).
func TestInterruptedDeviceGoesOn(t *testing.T) {
	r := run(t, newFakeKernel(t), nil)
	index := r.await(EventAttached).Index
	r.k.giveUp(index)
	if e := r.await(EventResumed); e.Index != index {
		t.Errorf("device %d goes on, was %d", e.Index, index)
	}
	if n := r.answeredBy(index); n != 2 {
		t.Errorf("life %d answers, want 2: what the first has sent may be under way", n)
	}
}

// An agent that ends leaves the device; the next one goes on with it (K8), once the kernel has noticed (K4).
func TestNextAgentGoesOn(t *testing.T) {
	k := newFakeKernel(t)
	first := run(t, k, nil)
	index := first.await(EventAttached).Index
	first.stop()
	if err := first.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("the first agent ended with %v", err)
	}
	k.mu.Lock()
	k.devices[index].sock.Close()
	k.devices[index].sock = nil
	k.slow = 3
	k.mu.Unlock()
	var resumed []bool
	second := run(t, k, func(o *AgentOptions, _ *rig) {
		o.Index, o.Resume = index, true
		o.Attached = func(_ int, again bool) error { resumed = append(resumed, again); return nil }
	})
	second.await(EventResumed)
	if n := second.answeredBy(index); n != 4 {
		t.Errorf("life %d answers, want the fourth: three found the old socket in its place", n)
	}
	if len(resumed) != 1 || !resumed[0] {
		t.Errorf("Attached was called with %v", resumed)
	}
	if k.device(index).sockets != 2 {
		t.Errorf("the kernel used %d sockets, want 2", k.device(index).sockets)
	}
}

// The device of before may be gone: after a reboot, say.
func TestVanishedDeviceIsMadeAnew(t *testing.T) {
	r := run(t, newFakeKernel(t), func(o *AgentOptions, _ *rig) { o.Index, o.Resume = 2, true })
	if e := r.await(EventAttached); e.Index != 2 {
		t.Errorf("device %d", e.Index)
	}
}

// Another's device is left alone, also when the notes say it were ours.
func TestAnothersDeviceIsLeftAlone(t *testing.T) {
	k := newFakeKernel(t)
	other := exampleConfig
	other.Identifier = "somebody else"
	if _, err := k.open(t).Connect(2, other, pairFor(t)); err != nil {
		t.Fatal(err)
	}
	r := run(t, k, func(o *AgentOptions, _ *rig) { o.Index, o.Resume = 2, true })
	if err := r.ended(); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	if d := k.device(2); d.sockets != 1 || d.config.Identifier != other.Identifier {
		t.Errorf("%+v", d)
	}
}

// When the disk is gone its device goes too: requests that waited for ever would hang their programs.
func TestGoneDiskTakesItsDeviceAlong(t *testing.T) {
	r := run(t, newFakeKernel(t), nil)
	index := r.await(EventAttached).Index
	(<-r.lives).endWith(ErrGone)
	if err := r.ended(); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
	if r.k.device(index) != nil {
		t.Error("the device is still there")
	}
}

// A backend whose storage does not answer notices nothing of the kernel's hanging up.
func TestStuckBackendIsClosedWhenTheKernelHangsUp(t *testing.T) {
	for name, tells := range map[string]bool{"link dead": true, "looking": false} {
		t.Run(name, func(t *testing.T) {
			k := newFakeKernel(t)
			k.noGroup = !tells
			r := run(t, k, func(o *AgentOptions, r *rig) {
				open := o.Open
				o.Open = func(ctx context.Context) (Backend, error) {
					b, err := open(ctx)
					b.(*life).stuck = b.(*life).number == 1
					return b, err
				}
			})
			index := r.await(EventAttached).Index
			k.giveUp(index)
			r.await(EventResumed)
		})
	}
}

// A client that is refused gets no device, not even for a moment; a device that waits is given up only when the disk is
// somebody else's now.
func TestRefusedClientGetsNoDevice(t *testing.T) {
	refusing := func(err error) func(*AgentOptions, *rig) {
		return func(o *AgentOptions, _ *rig) {
			open := o.Open
			o.Open = func(ctx context.Context) (Backend, error) {
				b, _ := open(ctx)
				b.(*life).refuse = err
				return b, nil
			}
		}
	}
	held := errors.New("held by another")
	k := newFakeKernel(t)
	if err := run(t, k, refusing(held)).ended(); !errors.Is(err, held) {
		t.Errorf("got %v", err)
	}
	if len(k.calls) > 0 {
		t.Errorf("the driver was asked for %v", k.calls)
	}

	first := run(t, k, nil)
	index := first.await(EventAttached).Index
	first.stop()
	first.ended()
	again := func(err error) func(*AgentOptions, *rig) {
		return func(o *AgentOptions, r *rig) {
			refusing(err)(o, r)
			o.Index, o.Resume = index, true
		}
	}
	second := run(t, k, again(held))
	second.await(EventRetry)
	second.stop()
	second.ended()
	if k.device(index) == nil {
		t.Fatal("the device was given up")
	}
	if err := run(t, k, again(errors.Join(held, ErrGone))).ended(); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
	if k.device(index) != nil {
		t.Error("the device is still there")
	}
}

// The first backend's failure is the command's; later ones are waited for, since a device waits too.
func TestOnlyAFirstFailureEndsTheAgent(t *testing.T) {
	broken := errors.New("no view server")
	r := run(t, newFakeKernel(t), func(o *AgentOptions, _ *rig) {
		o.Open = func(context.Context) (Backend, error) { return nil, broken }
	})
	if err := r.ended(); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}

	k := newFakeKernel(t)
	failures := 0
	r = run(t, k, func(o *AgentOptions, _ *rig) {
		open := o.Open
		o.Open = func(ctx context.Context) (Backend, error) {
			if k.device(0) != nil && failures < 3 {
				failures++
				return nil, broken
			}
			return open(ctx)
		}
	})
	k.giveUp(r.await(EventAttached).Index)
	if e := r.await(EventRetry); !errors.Is(e.Err, broken) {
		t.Errorf("told of %v", e.Err)
	}
	r.await(EventResumed)
	if failures != 3 {
		t.Errorf("%d failures", failures)
	}
}

// If the owner cannot note what it attached, there must be no device that nobody knows of.
func TestUnnotedDeviceIsDetached(t *testing.T) {
	full := errors.New("disk full")
	k := newFakeKernel(t)
	r := run(t, k, func(o *AgentOptions, _ *rig) {
		o.Attached = func(int, bool) error { return full }
	})
	if err := r.ended(); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	if k.device(0) != nil {
		t.Error("the device is still there")
	}
}

func TestDeviceGetsTheDisksSizeWithEachSocket(t *testing.T) {
	r := run(t, newFakeKernel(t), nil)
	index := r.await(EventAttached).Index
	for n := range 3 {
		r.k.mu.Lock()
		size := r.k.devices[index].config.Size
		r.k.mu.Unlock()
		if want := uint64(n+1) << 30; size != want {
			t.Errorf("with socket %d the device has %d bytes, its disk %d", n+1, size, want)
		}
		r.k.giveUp(index)
		r.await(EventResumed)
	}
}

// A disk that grows while the device is used: the device grows too, with the socket that it has. The driver may fail at first.
func TestDeviceGrowsWhileItIsServed(t *testing.T) {
	noted := make(chan int, 4)
	r := run(t, newFakeKernel(t), func(o *AgentOptions, _ *rig) { o.Resized = func(index int, _ uint64) { noted <- index } })
	index := r.await(EventAttached).Index
	l := <-r.lives
	for n, failures := range []int{0, 1} {
		r.k.mu.Lock()
		r.k.deaf = failures
		r.k.mu.Unlock()
		l.grow(1 << 20)
		if failures > 0 {
			r.await(EventRetry) // and it is tried again without another hint
		}
		want := uint64(1<<30 + (n+1)<<20)
		if e := r.await(EventResized); e.Index != index || e.Size != want {
			t.Errorf("told of %d bytes at device %d, want %d at %d", e.Size, e.Index, want, index)
		}
		if at := <-noted; at != index {
			t.Errorf("noted device %d", at)
		}
		if d := r.k.device(index); d.config.Size != want || d.sockets != 1 {
			t.Errorf("the device has %d bytes and was given %d sockets, want %d and 1", d.config.Size, d.sockets, want)
		}
	}
	if n := r.answeredBy(index); n != 1 {
		t.Errorf("life %d answers", n)
	}
	calls := func() int {
		r.k.mu.Lock()
		defer r.k.mu.Unlock()
		return len(r.k.calls)
	}
	before := calls()
	l.grow(0)
	l.grow(0) // it is received when the first has been looked at
	if n := calls(); n != before {
		t.Errorf("the driver was called %d times about a disk that has not grown", n-before)
	}
}
