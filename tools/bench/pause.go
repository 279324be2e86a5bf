package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// settle is how many writes come before and after each event, so that it falls into a steady stream.
const settle = 300

// pauses are what a client saw of one kind of event.
type pauses struct {
	Event  string    `json:"event"`
	Millis []float64 `json:"ms"` // ascending: the longest time between two acknowledged writes around each event
}

// measurePauses kills the primary again and again under a client's writes, and has it hand over.
func measurePauses(ctx context.Context, o options, dir string) ([]pauses, error) {
	if err := os.MkdirAll(filepath.Join(dir), 0o755); err != nil {
		return nil, err
	}
	d, err := cluster.StartDev(ctx, cluster.DevOptions{
		Binary: o.binary, Dir: filepath.Join(dir, "dev"), Logs: dir, Args: []string{"--size", "256M"},
	})
	if err != nil {
		return nil, err
	}
	defer interrupt(d.Process)
	kill := func() (func() error, error) {
		node, pid, err := d.Primary(ctx)
		if err == nil {
			err = d.KillNode(pid)
		}
		return func() error { return d.Restart(ctx, node) }, err
	}
	handover := func() (func() error, error) {
		r, err := cluster.Command(ctx, o.binary, "handover", "vol0", "--view", d.View())
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("handover: %s", r.Line())
		}
		return func() error { return nil }, err
	}
	all := []pauses{{Event: "kill -9 of the primary"}, {Event: "handover"}}
	for i, event := range []func() (func() error, error){kill, handover} {
		for n := range o.failovers {
			fmt.Fprintf(os.Stderr, "%s %d\n", all[i].Event, n+1)
			if err := d.AwaitSafe(ctx); err != nil {
				return nil, err
			}
			pause, err := onePause(ctx, d.URI, event)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", all[i].Event, err)
			}
			all[i].Millis = append(all[i].Millis, float64(pause.Microseconds())/1000)
		}
		slices.Sort(all[i].Millis)
	}
	return all, nil
}

// onePause is the longest time between two acknowledged writes around an event. What the event returns puts things
// right again.
func onePause(ctx context.Context, uri string, event func() (func() error, error)) (time.Duration, error) {
	disk, err := stamped.DialNBD(ctx, uri)
	if err != nil {
		return 0, err
	}
	defer disk.Close()

	var (
		mu      sync.Mutex // guards the next three
		done    int
		longest time.Duration
		stop    bool
	)
	failed := make(chan error, 1)
	go func() { // ends when stop is set, or with the connection
		block := make([]byte, 4096)
		last := time.Now()
		for i := uint64(0); ; i++ {
			err := disk.WriteAt(block, i%1024*4096, false)
			now := time.Now()
			mu.Lock()
			done++
			longest = max(longest, now.Sub(last))
			over := stop
			mu.Unlock()
			last = now
			if err != nil || over {
				failed <- err
				return
			}
		}
	}()
	more := func() error {
		mu.Lock()
		want := done + settle
		mu.Unlock()
		return cluster.Await(ctx, readyLimit, "writes", func() error {
			mu.Lock()
			defer mu.Unlock()
			if done < want {
				return fmt.Errorf("%d are missing", want-done)
			}
			return nil
		})
	}
	if err := more(); err != nil {
		return 0, err
	}
	mu.Lock()
	longest = 0
	mu.Unlock()
	repair, err := event()
	if err != nil {
		return 0, err
	}
	if err := more(); err != nil {
		return 0, err
	}
	mu.Lock()
	stop = true
	pause := longest
	mu.Unlock()
	if err := <-failed; err != nil {
		return 0, err
	}
	return pause, repair()
}
