package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// A volume grows under fio, which does not notice: also while the node is killed that is to make it larger. Whoever
// connects from then on has all of it, and what is written at its end is on every copy, one included that was away.
func TestVolumeGrowsUnderLoad(t *testing.T) {
	need(t, "fio", "nbdinfo")
	c := start(t, cluster.Options{})
	j := fio(t, c.URI, 64, 2500)
	awaitCommits(t, c, 500)
	for round, step := range []struct {
		size   string
		bytes  uint64
		victim func() string // killed while the volume grows
	}{
		{"1G", 1 << 30, nil},
		{"5368713216", 5<<30 + blockSize, func() string { return ask(t, c.Primary) }},
		{"20G", 20 << 30, func() string { return ask(t, c.Backup) }},
	} {
		victim, done := "", make(chan cluster.Result, 1)
		if step.victim != nil {
			victim = step.victim()
		}
		go func() {
			r, err := c.Command(t.Context(), "volume", "resize", c.Volume(), "--size", step.size)
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		if victim != "" {
			c.Node(victim).Kill()
		}
		if r := <-done; r.Code != 0 || !strings.Contains(r.Stdout, c.Volume()+" has ") {
			t.Fatalf("resize to %s: exit code %d, %q, %s", step.size, r.Code, r.Stdout, r.Line())
		}
		must(t, cluster.Await(t.Context(), serveLimit, "the new size", func() error { // the gateway hears of it a moment later
			if got := strings.TrimSpace(command(t, "nbdinfo", "--size", c.URI)); got != fmt.Sprint(step.bytes) {
				return fmt.Errorf("nbdinfo says %s bytes", got)
			}
			return nil
		}))
		want := bytes.Repeat([]byte{byte(round + 1)}, blockSize)
		withDisk(t, c.URI, func(d *stamped.NBD) { must(t, d.WriteAt(want, step.bytes-blockSize, false)) })
		if victim != "" {
			must(t, c.Node(victim).Start())
		}
		must(t, c.AwaitSafe(t.Context()))
		c.Node(ask(t, c.Primary)).Kill()
		must(t, c.StartAll())
		must(t, c.AwaitSafe(t.Context()))
		withDisk(t, c.URI, func(d *stamped.NBD) {
			got := make([]byte, blockSize)
			must(t, d.ReadAt(got, step.bytes-blockSize))
			if d.Size() != step.bytes || !bytes.Equal(got, want) {
				t.Errorf("after the primary's death %d bytes, and at their end %x", d.Size(), got[:8])
			}
		})
	}
	if r, err := c.Command(t.Context(), "volume", "resize", c.Volume(), "--size", "1G"); err != nil || r.Code == 0 ||
		!strings.Contains(r.Line(), "cannot be made smaller") {
		t.Errorf("made smaller: %+v, %v", r, err)
	}
	finish(t, j)
	sameImages(t, c)
}
