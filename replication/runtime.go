package replication

import (
	"context"
	"sync"
	"time"
)

// Runtime is where a replica's goroutines live: it starts them, makes them wait, and tells the time. Production uses
// Go's own. The simulator (tools/sim) has one in which a single goroutine runs at a time and a seed decides which is
// next, so that everything in this package is simulated as it stands.
//
// A goroutine of a Replica waits in nothing else than what a Runtime made, a connection, and the storage. A mutex that
// is never held while one of those is called, or another lock is taken, can as well be a sync.Mutex.
type Runtime interface {
	// Go starts a goroutine.
	Go(f func())
	// Mutex makes a lock.
	Mutex() sync.Locker
	// Cond makes a condition variable of a lock that Mutex made.
	Cond(l sync.Locker) Cond
	// Alarm makes an Alarm that was not rung.
	Alarm() Alarm
	// Now is the time, with a monotonic clock.
	Now() time.Time
}

// Cond is what a *sync.Cond does.
type Cond interface {
	Wait()
	Signal()
	Broadcast()
}

// Alarm wakes one goroutine, which may also wait for a time to pass. It remembers one ring.
type Alarm interface {
	// Ring never blocks.
	Ring()
	// Wait returns when the alarm was rung, after d, or when ctx ends. It tells whether it was rung.
	Wait(ctx context.Context, d time.Duration) bool
}

// forever is longer than anybody waits.
const forever = 1 << 62 * time.Nanosecond

// goRuntime is Go's.
type goRuntime struct{}

func (goRuntime) Go(f func()) { go f() }

func (goRuntime) Mutex() sync.Locker { return new(sync.Mutex) }

func (goRuntime) Cond(l sync.Locker) Cond { return sync.NewCond(l) }

func (goRuntime) Alarm() Alarm { return make(goAlarm, 1) }

func (goRuntime) Now() time.Time { return time.Now() }

// goAlarm holds one token at most.
type goAlarm chan struct{}

func (a goAlarm) Ring() {
	select {
	case a <- struct{}{}:
	default: // somebody is going to be woken anyway
	}
}

func (a goAlarm) Wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-a:
		return true
	case <-t.C:
		return false
	}
}

// sleep waits for a time to pass, and tells whether ctx still goes on.
func sleep(ctx context.Context, rt Runtime, d time.Duration) bool {
	rt.Alarm().Wait(ctx, d)
	return ctx.Err() == nil
}
