package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// P5, hazard 5: a node that comes back with an empty disk is a new replica; it is brought up to date, and writes do not
// pause for it.
func TestWipedNodeIsFilledAgainWithoutAPause(t *testing.T) {
	c := start(t, cluster.Options{})
	// More than the log holds: what is older has to come from the image, region by region.
	withDisk(t, c.URI, func(d *stamped.NBD) {
		b := bytes.Repeat([]byte("old data"), 1<<17)
		for range 3 {
			for off := uint64(64 << 20); off < 192<<20; off += 1 << 20 {
				must(t, d.WriteAt(b, off, false))
			}
		}
	})
	s := beset(t, c)
	victim := ask(t, c.Backup)
	c.Node(victim).Kill()
	s.goesOn() // the view without it
	s.run.pause()
	must(t, os.RemoveAll(c.DataDir(victim)))
	must(t, c.Node(victim).Start())
	must(t, c.AwaitSafe(t.Context()))
	if gap := s.run.pause(); gap > 2*time.Second { // a machine that is busy has some of its own
		t.Errorf("writes paused for %v while the copy was made", gap)
	}
	// What it was given is good enough to serve.
	c.Node(ask(t, c.Primary)).Kill()
	s.goesOn()
	if now := ask(t, c.Primary); now != victim {
		t.Errorf("%s is primary, want %s", now, victim)
	}
	must(t, c.StartAll())
	must(t, c.AwaitSafe(t.Context()))
	s.end()
}

// A node can be killed at any moment of its replica's making: while it is formatted, and while it is filled.
func TestKillWhileAReplicaIsMadeDoesNoHarm(t *testing.T) {
	c := start(t, cluster.Options{})
	ledger := clean(t, c.URI)
	run := tormentIt(t, c.URI, ledger, seed(t), false)
	run.goesOn(500)
	victim := ask(t, c.Backup)
	made := func(pattern string) error {
		found, err := filepath.Glob(filepath.Join(c.DataDir(victim), "volumes", "*", pattern))
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("no %s yet", pattern)
		}
		return err
	}
	for _, pattern := range []string{"LOCK", "meta.new", "wal*", "meta"} {
		c.Node(victim).Kill()
		must(t, os.RemoveAll(c.DataDir(victim)))
		must(t, c.Node(victim).Start())
		// Formatting takes some milliseconds: look more often than Await does.
		for deadline := time.Now().Add(serveLimit); made(pattern) != nil; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(made(pattern))
			}
		}
		c.Node(victim).Kill()
		must(t, c.Node(victim).Start())
		began := time.Now()
		must(t, c.AwaitSafe(t.Context()))
		t.Logf("killed when there was a %s: safe again after %v", pattern, time.Since(began).Round(time.Millisecond))
	}
	run.stop()
	verify(t, c.URI, ledger)
	sameImages(t, c)
}

// P6: a block that rotted on one member's disk is repaired from the other; nobody ever reads it.
func TestRottenBlockIsNeverRead(t *testing.T) {
	c := start(t, cluster.Options{Size: "64M"})
	const blocks = 64
	good := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, blockSize) }
	withDisk(t, c.URI, func(d *stamped.NBD) {
		for i := range blocks {
			must(t, d.WriteAt(good(i), uint64(i)*blockSize, false))
		}
	})
	must(t, c.StopAll())
	images, err := c.Images()
	must(t, err)
	for n, node := range c.Nodes() { // each loses other blocks
		f, err := os.OpenFile(images[node], os.O_RDWR, 0)
		must(t, err)
		for i := n; i < blocks; i += 2 * len(images) {
			_, err := f.WriteAt([]byte{0xff}, int64(i)*blockSize+100)
			must(t, err)
		}
		must(t, f.Close())
	}
	must(t, c.StartAll())
	must(t, c.AwaitSafe(t.Context()))
	check := func() {
		t.Helper()
		withDisk(t, c.URI, func(d *stamped.NBD) {
			b := make([]byte, blockSize)
			for i := range blocks {
				if err := d.ReadAt(b, uint64(i)*blockSize); err != nil {
					t.Errorf("block %d, of which there is a good copy: %v", i, err)
				} else if !bytes.Equal(b, good(i)) {
					t.Errorf("block %d was read rotten", i)
				}
			}
		})
	}
	check()
	r, err := c.Command(t.Context(), "handover", c.Volume())
	must(t, err)
	if r.Code != 0 {
		t.Fatalf("handover: %s", r.Line())
	}
	must(t, c.AwaitSafe(t.Context()))
	check()
}
