package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"lockstep/tools/e2e/cluster"
)

// least is how long something is watched at least.
const least = time.Second

// beside finds the longest pause of the probe's writes while something happens under the load; and, for comparison, the
// longest in as long a time afterwards, in which nothing does.
func beside(ctx context.Context, l *load, happens func() error) (during, after pause, err error) {
	if err := l.goesOn(ctx, settle); err != nil {
		return during, after, err
	}
	began := l.reset()
	if err := happens(); err != nil {
		return during, after, err
	}
	took := max(time.Since(began), least)
	if err := wait(ctx, time.Until(began.Add(took))); err != nil {
		return during, after, err
	}
	during.whole = longest(l.since())
	l.reset()
	if err := wait(ctx, took); err != nil {
		return during, after, err
	}
	after.whole = longest(l.since())
	return during, after, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func longest(gaps []gap) (most time.Duration) {
	for _, g := range gaps {
		most = max(most, g.length())
	}
	return most
}

// recruit brings a backup back on an empty disk, until it is a member again.
func recruit(ctx context.Context, c *cluster.Cluster, l *load) (during, after pause, err error) {
	return back(ctx, c, l, func(id string) error { return os.RemoveAll(c.DataDir(id)) })
}

// away is how long a backup is away that comes back with its data.
const away = time.Second

// comeBack brings a backup back that was away, until it is a member again.
func comeBack(ctx context.Context, c *cluster.Cluster, l *load) (during, after pause, err error) {
	return back(ctx, c, l, func(string) error { return wait(ctx, away) })
}

// back kills a backup and starts it again when meanwhile has been.
func back(ctx context.Context, c *cluster.Cluster, l *load, meanwhile func(id string) error) (during, after pause, err error) {
	id, err := c.Backup(ctx)
	if err != nil {
		return during, after, err
	}
	c.Node(id).Kill()
	if err := c.AwaitState(ctx, safeLimit, "degraded"); err != nil {
		return during, after, err
	}
	if err := meanwhile(id); err != nil {
		return during, after, err
	}
	return beside(ctx, l, func() error {
		began := time.Now()
		if err := c.Node(id).Start(); err != nil {
			return err
		}
		err := c.AwaitState(ctx, safeLimit, "safe")
		fmt.Fprintf(os.Stderr, "%s came back in %v\n", id, time.Since(began).Round(time.Millisecond))
		return err
	})
}

// grow makes the volume larger by 64 MiB.
func grow(ctx context.Context, c *cluster.Cluster, l *load) (during, after pause, err error) {
	st, _, err := c.Status(ctx)
	if err != nil || len(st.Volumes) == 0 {
		return during, after, fmt.Errorf("the volume is not there: %w", err)
	}
	size := fmt.Sprintf("%dM", st.Volumes[0].Size>>20+64)
	return beside(ctx, l, func() error {
		_, err := c.Command(ctx, "volume", "resize", c.Volume(), "--size", size)
		return err
	})
}

// watched measures something that is to be unnoticed several times.
func watched(ctx context.Context, c *cluster.Cluster, l *load, name string, times int,
	happens func(context.Context, *cluster.Cluster, *load) (during, after pause, err error)) ([]*events, error) {
	with, without := newEvents(name), newEvents("nothing, for as long")
	for n := range times {
		if err := l.rest(func() error { return c.AwaitState(ctx, safeLimit, "safe") }); err != nil {
			return nil, err
		}
		if err := l.goesOn(ctx, settle); err != nil {
			return nil, err
		}
		d, a, err := happens(ctx, c, l)
		if err != nil {
			return nil, fmt.Errorf("%s, %d: %w", name, n+1, err)
		}
		fmt.Fprintf(os.Stderr, "%s, %d: %v, nothing %v\n", name, n+1, d, a)
		with.add(d)
		without.add(a)
	}
	return []*events{with, without}, nil
}
