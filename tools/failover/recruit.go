package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"lockstep/tools/e2e/cluster"
)

// recruit brings a backup back on an empty disk under the load, and finds the longest pause of the probe's writes until it is
// a member again; and, for comparison, the longest in as long a time afterwards, in which nothing happens.
func recruit(ctx context.Context, c *cluster.Cluster, l *load) (during, after pause, err error) {
	id, err := c.Backup(ctx)
	if err != nil {
		return during, after, err
	}
	c.Node(id).Kill()
	if err := c.AwaitState(ctx, safeLimit, "degraded"); err != nil {
		return during, after, err
	}
	if err := os.RemoveAll(c.DataDir(id)); err != nil {
		return during, after, err
	}
	if err := l.goesOn(ctx, settle); err != nil {
		return during, after, err
	}
	began := l.reset()
	if err := c.Node(id).Start(); err != nil {
		return during, after, err
	}
	if err := c.AwaitState(ctx, safeLimit, "safe"); err != nil {
		return during, after, err
	}
	took := time.Since(began)
	during.whole = longest(l.since())
	l.reset()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return during, after, ctx.Err()
	}
	after.whole = longest(l.since())
	fmt.Fprintf(os.Stderr, "%s came back on an empty disk in %v\n", id, took.Round(time.Millisecond))
	return during, after, nil
}

func longest(gaps []gap) (most time.Duration) {
	for _, g := range gaps {
		most = max(most, g.length())
	}
	return most
}

// recruits measures that several times.
func recruits(ctx context.Context, c *cluster.Cluster, l *load, times int) ([]*events, error) {
	during, after := newEvents("a backup is copied anew"), newEvents("nothing, for as long")
	for n := range times {
		if err := l.rest(func() error { return c.AwaitState(ctx, safeLimit, "safe") }); err != nil {
			return nil, err
		}
		if err := l.goesOn(ctx, settle); err != nil {
			return nil, err
		}
		d, a, err := recruit(ctx, c, l)
		if err != nil {
			return nil, fmt.Errorf("recruit %d: %w", n+1, err)
		}
		fmt.Fprintf(os.Stderr, "recruit %d: %v, nothing %v\n", n+1, d, a)
		during.add(d)
		after.add(a)
	}
	return []*events{during, after}, nil
}
