package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Command runs an operator's command against this cluster, beside the gateway, which no test cuts off from the view servers.
func (c *Cluster) Command(ctx context.Context, args ...string) (Result, error) {
	line := c.o.onHost("gateway", append([]string{c.o.Binary}, append(args, "--view", c.View)...)...)
	return Command(ctx, line[0], line[1:]...)
}

// Status asks the view server.
func (c *Cluster) Status(ctx context.Context) (Status, int, error) {
	return statusOf(func(args ...string) (Result, error) { return c.Command(ctx, args...) })
}

// Leader is the view server that leads.
func (c *Cluster) Leader(ctx context.Context) (*Process, error) {
	s, _, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range s.Viewd {
		for _, p := range c.viewds {
			if v.Leader && v.ID == p.Name {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("cluster: no view server leads in %+v", s.Viewd)
}

// Primary is the node that the present view names.
func (c *Cluster) Primary(ctx context.Context) (string, error) {
	s, _, err := c.Status(ctx)
	if err != nil {
		return "", err
	}
	if len(s.Volumes) != 1 || c.nodes[s.Volumes[0].View.Primary] == nil {
		return "", fmt.Errorf("cluster: no primary in %+v", s)
	}
	return s.Volumes[0].View.Primary, nil
}

// Backup is a node that the present view names as a backup.
func (c *Cluster) Backup(ctx context.Context) (string, error) {
	s, _, err := c.Status(ctx)
	if err != nil {
		return "", err
	}
	if len(s.Volumes) != 1 || len(s.Volumes[0].View.Backups) == 0 {
		return "", fmt.Errorf("cluster: no backup in %+v", s)
	}
	return s.Volumes[0].View.Backups[0], nil
}

// AwaitState waits until the volume is in one of the states.
func (c *Cluster) AwaitState(ctx context.Context, limit time.Duration, states ...string) error {
	return Await(ctx, limit, "volume "+strings.Join(states, " or "), func() error {
		s, _, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if len(s.Volumes) != 1 || !slices.Contains(states, s.Volumes[0].State) {
			return fmt.Errorf("it is %+v", s.Volumes)
		}
		return nil
	})
}

// AwaitSafe waits until every copy is in the view and up to date, and the view servers know the processes that run now:
// what they say before they have noticed that a node died, or started again, does not count.
func (c *Cluster) AwaitSafe(ctx context.Context) error {
	return Await(ctx, safeLimit, "volume safe", func() error {
		s, _, err := c.Status(ctx)
		if err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if p := c.nodes[n.ID]; p != nil && p.Running() && (!n.Alive || n.PID != p.PID()) {
				return fmt.Errorf("node %s has the pid %d; the view server knows %+v", n.ID, p.PID(), n)
			}
		}
		if len(s.Volumes) != 1 || s.Volumes[0].State != "safe" {
			return fmt.Errorf("it is %+v", s.Volumes)
		}
		return nil
	})
}

// Verify lets `lockstep wal verify` look at a replica, by its image, whose node is stopped.
func (c *Cluster) Verify(ctx context.Context, image string) error {
	r, err := Command(ctx, c.o.Binary, "wal", "verify", filepath.Dir(image))
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("cluster: the replica in %s is not sound: %s%s", filepath.Dir(image), r.Stdout, r.Stderr)
	}
	return nil
}
