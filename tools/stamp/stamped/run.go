package stamped

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a run.
const (
	maxWorkers  = 1024
	redialEvery = 50 * time.Millisecond // between two attempts to connect again
	claimTries  = 64                    // other cells tried before a worker reads instead of writing
)

// ErrHung ends a run whose last requests were never answered.
var ErrHung = errors.New("stamped: a request is still unanswered")

// Options say how to torment a disk.
type Options struct {
	// Dial opens a connection. With Reconnect it is called again, until it succeeds, whenever one was lost.
	Dial func(ctx context.Context) (Disk, error)
	// Reconnect makes a lost connection a nuisance instead of the end of the run.
	Reconnect bool
	Conns     int           // connections
	Depth     int           // requests in flight on each
	MaxCells  int           // cells of the longest request
	Seed      uint64        // of the choice of requests
	Drain     time.Duration // how long requests may go on after the end of the run
	// Observe, if set, is told of every request that ended well. It is called from many goroutines.
	Observe func(kind Kind, began time.Time, took time.Duration)
}

// Validate fills in defaults and tells what is wrong.
func (o *Options) Validate() error {
	if o.Dial == nil {
		return errors.New("stamped: Options.Dial is not set")
	}
	if o.Conns == 0 {
		o.Conns = 2
	}
	if o.Depth == 0 {
		o.Depth = 8
	}
	if o.MaxCells == 0 {
		o.MaxCells = 64
	}
	if o.Drain == 0 {
		o.Drain = time.Minute
	}
	if o.Conns < 0 || o.Depth < 0 || o.Conns*o.Depth > maxWorkers || o.MaxCells < 0 {
		return fmt.Errorf("stamped: %d connections of depth %d with requests of %d cells: out of range, at most %d workers",
			o.Conns, o.Depth, o.MaxCells, maxWorkers)
	}
	return nil
}

// Kind is what a request does.
type Kind uint8

// The kinds of request.
const (
	Reading Kind = iota
	Writing
	Zeroing
	Trimming
	Flushing
	kinds
)

func (k Kind) String() string {
	switch k {
	case Reading:
		return "read"
	case Writing:
		return "write"
	case Zeroing:
		return "zero"
	case Trimming:
		return "trim"
	case Flushing:
		return "flush"
	}
	return "unknown"
}

// Stats is what a run did.
type Stats struct {
	Ops       [kinds]int64
	Abandoned int64 // requests whose connection was lost
	Redials   int64
	Longest   time.Duration // that any one request took
}

// Done is how many requests ended well.
func (s Stats) Done() (n int64) {
	for _, v := range s.Ops {
		n += v
	}
	return n
}

func (s Stats) String() string {
	return fmt.Sprintf("%d reads, %d writes, %d zeroings, %d trims, %d flushes; %d abandoned, %d redials, longest request %v",
		s.Ops[Reading], s.Ops[Writing], s.Ops[Zeroing], s.Ops[Trimming], s.Ops[Flushing],
		s.Abandoned, s.Redials, s.Longest.Round(time.Millisecond))
}

// Run torments a disk until ctx ends, which is its only good end, or something is wrong: a *Violation, ErrHung, or
// an error of the disk. All its connections are closed and no request is in flight when it returns.
func Run(ctx context.Context, l *Ledger, o Options) (Stats, error) {
	if err := o.Validate(); err != nil {
		return Stats{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &runner{ledger: l, o: o, cancel: cancel}

	var all sync.WaitGroup
	var links []*link
	for c := range o.Conns {
		disk, err := r.dial(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.fail(err)
			}
			break
		}
		k := &link{r: r, disk: disk}
		links = append(links, k)
		for d := range o.Depth {
			w := &worker{r: r, link: k, id: uint32(c*o.Depth + d)}
			w.rng = rand.New(rand.NewPCG(o.Seed, uint64(w.id)))
			all.Go(func() { w.loop(ctx) })
		}
	}
	done := make(chan struct{})
	go func() { // ends with the workers
		all.Wait()
		close(done)
	}()
	<-ctx.Done()
	select {
	case <-done:
	case <-time.After(o.Drain):
		r.fail(fmt.Errorf("%w %v after the run's end", ErrHung, o.Drain))
	}
	for _, k := range links { // frees workers that hang
		k.current().Close()
	}
	<-done
	return r.stats(), r.firstError()
}

// runner is what the workers of a Run share.
type runner struct {
	ledger *Ledger
	o      Options
	cancel context.CancelFunc

	ops       [kinds]atomic.Int64
	abandoned atomic.Int64
	redials   atomic.Int64
	longest   atomic.Int64

	mu  sync.Mutex
	err error // the first
}

func (r *runner) firstError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// fail ends the run.
func (r *runner) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	r.cancel()
}

func (r *runner) stats() (s Stats) {
	for i := range r.ops {
		s.Ops[i] = r.ops[i].Load()
	}
	s.Abandoned, s.Redials = r.abandoned.Load(), r.redials.Load()
	s.Longest = time.Duration(r.longest.Load())
	return s
}

// dial opens a connection, with patience if the run reconnects.
func (r *runner) dial(ctx context.Context) (Disk, error) {
	for {
		d, err := r.o.Dial(ctx)
		if err == nil || !r.o.Reconnect {
			return d, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(redialEvery):
		}
	}
}

// link is one connection and its successors.
type link struct {
	r *runner

	mu   sync.Mutex
	disk Disk
}

func (k *link) current() Disk {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.disk
}

// lost replaces a broken connection, once, however many workers complain of it. The others wait here meanwhile.
func (k *link) lost(ctx context.Context, broken Disk) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.disk != broken {
		return nil
	}
	k.disk.Close()
	d, err := k.r.dial(ctx)
	if err != nil {
		return err
	}
	k.disk = d
	k.r.redials.Add(1)
	return nil
}
