package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"lockstep/tools/e2e/cluster"
)

const blockSize = 4096

// sameImages stops the cluster in good order and compares the copies, block by block: the checksums of all must be
// equal, and right for the data, which then is equal too. A block whose checksum is 0 reads as zeroes whatever
// the image holds there.
func sameImages(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	settled(t, c)
	must(t, c.StopAll())
	images, err := c.Images()
	must(t, err)
	for _, image := range images {
		must(t, c.Verify(t.Context(), image)) // meta, log and regions too
	}
	first := c.Nodes()[0]
	reference := sums(t, images[first])
	checkImage(t, images[first], reference)
	for _, node := range c.Nodes()[1:] {
		got := sums(t, images[node])
		if len(got) != len(reference) {
			t.Fatalf("%s has %d checksums, %s has %d", node, len(got), first, len(reference))
		}
		for i := range got {
			if got[i] != reference[i] {
				t.Fatalf("block %d has checksum %#x at %s and %#x at %s", i, reference[i], first, got[i], node)
			}
		}
		checkImage(t, images[node], got)
	}
}

// settled waits until every copy knows that everything is committed: a backup hears of the last write's commit a moment
// after the client, and applies no more than it has heard of.
func settled(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	must(t, c.AwaitSafe(t.Context()))
	must(t, cluster.Await(t.Context(), serveLimit, "the same commit point everywhere", func() error {
		s, _, err := c.Status(t.Context())
		if err != nil {
			return err
		}
		for _, r := range s.Volumes[0].Replicas {
			if r.Commit != r.LogEnd || r.Commit != s.Volumes[0].Replicas[0].Commit {
				return fmt.Errorf("it is %+v", s.Volumes[0].Replicas)
			}
		}
		return nil
	}))
}

// sums reads the checksums that belong to an image, one per block.
func sums(t *testing.T, image string) []uint32 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(image), "data.crc"))
	must(t, err)
	info, err := os.Stat(image)
	must(t, err)
	n := int(info.Size() / blockSize)
	if len(b) < 4*n {
		t.Fatalf("%s: data.crc has %d bytes, too few for %d blocks", image, len(b), n)
	}
	s := make([]uint32, n)
	for i := range s {
		s[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return s
}

// checkImage checks the data of an image against the checksums.
func checkImage(t *testing.T, image string, sums []uint32) {
	t.Helper()
	f, err := os.Open(image)
	must(t, err)
	defer f.Close()
	table := crc32.MakeTable(crc32.Castagnoli)
	var key [8]byte
	written := 0
	block, zeroes := make([]byte, blockSize), make([]byte, blockSize)
	for i, want := range sums {
		if _, err := f.ReadAt(block, int64(i)*blockSize); err != nil {
			t.Fatalf("%s: block %d: %v", image, i, err)
		}
		if want < 2 { // 0: a hole, 1: zeroes that take space
			if !bytes.Equal(block, zeroes) {
				t.Fatalf("%s: block %d is not zero, as its checksum %d says", image, i, want)
			}
			continue
		}
		written++
		binary.LittleEndian.PutUint64(key[:], uint64(i))
		got := max(2, crc32.Update(crc32.Update(0, table, key[:]), table, block))
		if got != want {
			t.Fatalf("%s: block %d has checksum %#x, should have %#x", image, i, got, want)
		}
	}
	if written == 0 {
		t.Fatalf("%s: no block was ever written; the test compares nothing", image)
	}
}

// sameFile compares two files.
func sameFile(t *testing.T, a, b string) {
	t.Helper()
	fa, err := os.Open(a)
	must(t, err)
	defer fa.Close()
	fb, err := os.Open(b)
	must(t, err)
	defer fb.Close()
	ba, bb := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(ba)) {
		na, ea := io.ReadFull(fa, ba)
		nb, eb := io.ReadFull(fb, bb)
		if na != nb || !bytes.Equal(ba[:na], bb[:nb]) {
			t.Fatalf("%s and %s differ after byte %d (%d and %d bytes read)", a, b, off, na, nb)
		}
		if ea != nil || eb != nil {
			return
		}
	}
}
