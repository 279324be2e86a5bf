package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"lockstep/tools/e2e/cluster"
)

// settle is how many of the probe's writes come before and after each event, so that it falls into a steady stream.
const settle = 200

// goOnLimit is how long the probe's writes may take to go on after an event: a guard, not a target.
const goOnLimit = time.Minute

// safeLimit is how long a node that was lost may take to return.
const safeLimit = 5 * time.Minute

// kind is a sort of event. It does the thing, and then, when the probe's writes have gone on, what puts things right.
type kind struct {
	name  string
	times func(options) int
	do    func(ctx context.Context, c *cluster.Cluster, o options) (repair func() error, err error)
}

var kinds = []kind{
	{"nothing", func(o options) int { return o.quiet }, nothing},
	{"handover", func(o options) int { return o.handovers }, handover},
	{"kill -9 of the primary", func(o options) int { return o.kills }, kill},
	{"SIGSTOP of the primary", func(o options) int { return o.stops }, stop},
}

func nothing(context.Context, *cluster.Cluster, options) (func() error, error) {
	return func() error { return nil }, nil
}

func kill(ctx context.Context, c *cluster.Cluster, _ options) (func() error, error) {
	id, err := c.Primary(ctx)
	if err != nil {
		return nil, err
	}
	n := c.Node(id)
	n.Kill()
	return n.Start, nil
}

func handover(ctx context.Context, c *cluster.Cluster, _ options) (func() error, error) {
	r, err := c.Command(ctx, "handover", c.Volume())
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("handover: %s", r.Line())
	}
	return func() error { return nil }, err
}

func stop(ctx context.Context, c *cluster.Cluster, o options) (func() error, error) {
	id, err := c.Primary(ctx)
	if err != nil {
		return nil, err
	}
	n := c.Node(id)
	if err := n.Pause(); err != nil {
		return nil, err
	}
	since := time.Now()
	return func() error {
		select {
		case <-time.After(o.stopped - time.Since(since)):
		case <-ctx.Done():
		}
		return n.Resume()
	}, nil
}

// measure starts everything, and lets all events happen.
func measure(ctx context.Context, o options, dir string) (*report, error) {
	c, err := cluster.Start(ctx, cluster.Options{Binary: o.Binary, Dir: dir, Size: "512M", Sync: o.sync,
		NodeArgs: []string{"--log-size", o.logSize}})
	if err != nil {
		return nil, err
	}
	defer c.KillAll()
	l, err := startLoad(ctx, c.URI)
	if err != nil {
		return nil, err
	}
	r := &report{}
	for _, k := range kinds {
		e := newEvents(k.name)
		for n := range k.times(o) {
			if err := l.rest(func() error { return c.AwaitState(ctx, safeLimit, "safe") }); err != nil {
				return nil, err
			}
			p, err := onePause(ctx, c, o, k, l, dir)
			if err != nil {
				l.end()
				return nil, fmt.Errorf("%s %d: %w", k.name, n+1, err)
			}
			fmt.Fprintf(os.Stderr, "%s %d: %v\n", k.name, n+1, p)
			e.add(p)
		}
		if k.times(o) > 0 {
			r.Events = append(r.Events, e)
		}
	}
	for _, w := range []struct {
		name    string
		times   int
		happens func(context.Context, *cluster.Cluster, *load) (during, after pause, err error)
	}{{"the volume grows", o.grows, grow}, {"a backup is copied anew", o.recruits, recruit}, {"a backup comes back", o.returns, comeBack}} {
		if w.times == 0 {
			continue
		}
		e, err := watched(ctx, c, l, w.name, w.times, w.happens)
		if err != nil {
			l.end()
			return nil, err
		}
		r.Events = append(r.Events, e...)
	}
	if r.Load, err = l.finish(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// onePause lets an event happen under the load and finds the pause that follows.
func onePause(ctx context.Context, c *cluster.Cluster, o options, k kind, l *load, dir string) (pause, error) {
	if err := l.goesOn(ctx, settle); err != nil {
		return pause{}, err
	}
	logs, err := mark(dir)
	if err != nil {
		return pause{}, err
	}
	began := l.reset()
	repair, err := k.do(ctx, c, o)
	if err != nil {
		return pause{}, err
	}
	if err := l.goesOn(ctx, settle); err != nil {
		return pause{}, err
	}
	p, err := logs.explain(began, l.since())
	if err != nil {
		return pause{}, err
	}
	if err := repair(); err != nil {
		return pause{}, err
	}
	return p, nil
}
