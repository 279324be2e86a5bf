package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// startLab starts a cluster of nodes, each on a host of its own.
func startLab(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	need(t, "ip")
	if os.Getuid() != 0 {
		missing(t, "making network namespaces needs root")
	}
	hosts := []string{"gateway", "n1", "n2", "v1"}
	if o.Views == 3 {
		hosts = append(hosts, "v2", "v3")
	}
	lab, err := cluster.NewLab(t.Context(), hosts...)
	must(t, err)
	t.Cleanup(func() { // after the cluster's
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	o.Lab = lab
	return start(t, o)
}

// becomes waits for a node to be the primary.
func becomes(t *testing.T, c *cluster.Cluster, node string) {
	t.Helper()
	must(t, cluster.Await(t.Context(), serveLimit, node+" is primary", func() error {
		now, err := c.Primary(t.Context())
		if err == nil && now != node {
			err = fmt.Errorf("%s is", now)
		}
		return err
	}))
}

// members waits for a view with so many members.
func members(t *testing.T, c *cluster.Cluster, n int) {
	t.Helper()
	must(t, cluster.Await(t.Context(), serveLimit, fmt.Sprintf("a view with %d members", n), func() error {
		s, _, err := c.Status(t.Context())
		if err == nil && (len(s.Volumes) != 1 || len(s.Volumes[0].View.Backups) != n-1) {
			err = fmt.Errorf("it is %+v", s.Volumes)
		}
		return err
	}))
}

// healed ends the partitions, and waits until all is as it was.
func healed(t *testing.T, c *cluster.Cluster, lab *cluster.Lab) {
	t.Helper()
	must(t, lab.Heal(t.Context()))
	must(t, c.AwaitSafe(t.Context()))
}

// The worst partition: the primary is cut off from the view server only. Its backup, and even some of its clients, still
// reach it; a gateway beside it hears of no other view. Another primary takes office all the same, and nobody, through
// whatever gateway, sees two disks. Then the same with the backup on the far side too, so that nobody but its clients
// can tell the old primary.
func TestPrimaryCutOffFromTheViewServer(t *testing.T) {
	for _, far := range []string{"view server only", "view server and backup"} {
		t.Run(far, func(t *testing.T) {
			c := startLab(t, cluster.Options{})
			lab := c.Lab()
			old, next := ask(t, c.Primary), ask(t, c.Backup)
			_, beside, err := c.AddGateway(old)
			must(t, err)
			withDisk(t, beside, func(*stamped.NBD) {}) // it listens
			s := beset(t, c, beside)

			must(t, lab.CutBoth(t.Context(), old, "v1"))
			if far == "view server and backup" {
				must(t, lab.CutBoth(t.Context(), old, next))
			}
			becomes(t, c, next)
			s.goesOn()
			healed(t, c, lab)
			if now := ask(t, c.Primary); now == old {
				t.Errorf("%s is primary again", old)
			}
			s.goesOn()
			s.end()
		})
	}
}

// The same with the new primary dead: the old one, which the view server does not reach, must not go on in its place,
// however alive it is. When it is reachable again it still was not a member of the last view.
func TestReplacedPrimaryDoesNotServeWhenItsSuccessorDies(t *testing.T) {
	c := startLab(t, cluster.Options{})
	lab := c.Lab()
	old, next := ask(t, c.Primary), ask(t, c.Backup)
	s := beset(t, c)

	must(t, lab.CutBoth(t.Context(), old, "v1"))
	must(t, lab.CutBoth(t.Context(), old, next)) // so that it does not become the backup
	becomes(t, c, next)
	s.goesOn()
	c.Node(next).Kill()
	must(t, lab.Heal(t.Context()))
	must(t, c.AwaitState(t.Context(), serveLimit, "unavailable"))
	before := s.h.answered()
	if now := ask(t, c.Primary); now != next {
		t.Errorf("%s is primary, and was no member of the last view", now)
	}
	must(t, c.Node(next).Start())
	must(t, c.AwaitSafe(t.Context()))
	s.goesOn()
	t.Logf("%d answers came before %s was back", before, next)
	s.end()
}

// Links that lose packets in one direction only. Whoever does not hear the other has to act; whoever is not heard must
// not go on as if he was.
func TestOneWayLoss(t *testing.T) {
	c := startLab(t, cluster.Options{})
	lab := c.Lab()
	s := beset(t, c)
	for _, cut := range []string{"backup to primary", "primary to backup", "primary to v1", "v1 to primary", "gateway to primary"} {
		primary, backup := ask(t, c.Primary), ask(t, c.Backup)
		from, to, _ := strings.Cut(strings.NewReplacer("primary", primary, "backup", backup).Replace(cut), " to ")
		must(t, lab.Cut(t.Context(), from, to))
		switch cut {
		case "backup to primary", "primary to backup":
			members(t, c, 1)
			if now := ask(t, c.Primary); now != primary {
				t.Errorf("%s: %s is primary, the view server reaches both", cut, now)
			}
			s.h.goesOn(200)
		case "primary to v1", "v1 to primary":
			becomes(t, c, backup)
			s.h.goesOn(200)
		}
		healed(t, c, lab)
		s.goesOn()
		t.Logf("%s: fine", cut)
	}
	s.end()
}

// The primary and the backup lose each other. The primary, which cannot tell a dead backup from a lost one, waits until
// the view is without it, and goes on alone.
func TestMembersLoseEachOther(t *testing.T) {
	c := startLab(t, cluster.Options{})
	s := beset(t, c)
	primary := ask(t, c.Primary)
	must(t, c.Lab().CutBoth(t.Context(), primary, ask(t, c.Backup)))
	members(t, c, 1)
	s.goesOn()
	t.Logf("writes paused for %v", s.run.pause())
	if now := ask(t, c.Primary); now != primary {
		t.Errorf("%s is primary, want %s", now, primary)
	}
	healed(t, c, c.Lab())
	s.goesOn()
	s.end()
}

// An old primary has a tail of its log that its backup never got, because what it sent was lost. Nobody was told that
// those writes are there, so they may go, and have to: the new primary's history has others in their place.
func TestUnmirroredTailIsCut(t *testing.T) {
	c := startLab(t, cluster.Options{})
	s := beset(t, c)
	old, next := ask(t, c.Primary), ask(t, c.Backup)
	must(t, c.Lab().Cut(t.Context(), old, next))
	acked := false
	withDisk(t, c.URI, func(d *stamped.NBD) {
		const off = 100 << 20
		done := make(chan error, 1)
		go func() { done <- d.WriteAt(make([]byte, blockSize), off, false) }() // ends with the connection
		select {
		case <-done:
			acked = true
		case <-time.After(time.Second): // shorter than it takes to change the view
		}
	})
	if acked {
		t.Error("a write was acknowledged that the backup cannot have")
	}
	c.Node(old).Kill()
	must(t, c.Lab().Heal(t.Context()))
	becomes(t, c, next)
	s.goesOn()
	must(t, c.Node(old).Start())
	must(t, c.AwaitSafe(t.Context()))
	if log := c.Node(old).LogTail(1 << 20); !strings.Contains(log, "tail") {
		t.Errorf("%s says nothing of a tail that was cut", old)
	}
	s.end()
}
