package replication

import (
	"context"
	"errors"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// Only orders of its own tenure tell a primary for certain who has the volume for himself: it may have heard of its office
// from a peer.
func TestNobodyIsLetInBeforeOrdersOfTheTenure(t *testing.T) {
	bubble(t, 1, groupOptions{}, func(g *group, _ *memNet) {
		r := g.open(1)
		g.deafen("a", true)
		time.Sleep(time.Second) // orders that were on their way have come
		g.mu.Lock()
		g.makeLocked("a", nil, 0)
		v := g.view
		g.mu.Unlock()
		r.do(func(c *Core) { c.Observe(v) })
		attach := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			s, err := r.Attach(ctx, blockdev.SessionID{Name: "c", Generation: uint64(time.Now().UnixNano())}, &client{aborted: make(chan struct{})})
			if err == nil {
				s.Close()
			}
			return err
		}
		if err := attach(); !errors.Is(err, blockdev.ErrNotPrimary) {
			t.Errorf("a primary that has heard no orders of its tenure: %v", err)
		}
		if role := r.Report().Role; role != viewsvc.RolePrimary {
			t.Fatalf("it is %s: that is no wonder", role)
		}
		g.deafen("a", false)
		time.Sleep(time.Second)
		if err := attach(); err != nil {
			t.Error(err)
		}
	})
}
