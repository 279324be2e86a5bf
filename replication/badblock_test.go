package replication

import (
	"bytes"
	"errors"
	"io"
	"path"
	"testing"

	"lockstep/blockdev"
	"lockstep/wal/vfs/memfs"
)

// flip changes a bit of a block's content in a file of a replica, wherever in the file it is.
func flip(t *testing.T, fs *memfs.FS, name string, content []byte) {
	t.Helper()
	f, err := fs.Open(path.Join("vol", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for at := 0; at < len(all); at += blockdev.BlockSize {
		if bytes.Equal(all[at:at+blockdev.BlockSize], content) {
			if _, err := f.WriteAt([]byte{content[100] ^ 8}, int64(at+100)); err != nil {
				t.Fatal(err)
			}
			found = true
		}
	}
	if !found {
		t.Fatalf("the block is not in %s", name)
	}
}

// A lone primary has a block that is bad, in the image or in the log, and nobody else has it. It gets a backup all the same,
// which has everything but that block, and of that block what the primary has: an error for whoever reads it.
func TestBadBlockOfALonePrimaryKeepsNobodyAway(t *testing.T) {
	for _, place := range []string{"data.img", "wal/00.seg"} {
		t.Run(path.Base(place), func(t *testing.T) {
			bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
				g.stop("b")
				c := g.attachTo(g.open(1))
				for i := range 64 {
					g.mustComplete(c, writeVersion(i, uint64(i+1)))
				}
				if place == "data.img" {
					g.stop("a") // now the image has it
					g.start("a")
				}
				flip(t, g.all["a"].fs, place, versionBlock(7, 8))
				if place == "data.img" {
					g.fill(g.attachTo(g.open(1))) // so that the log does not reach back to the beginning
				}
				g.start("b")
				primary := g.open(2)
				for {
					c := g.attachTo(primary)
					for i := range uint64(64) {
						q := readBlock(i)
						if o := c.submit(q, patience); o != isCompleted {
							t.Fatalf("a read of block %d %s", i, o)
						}
						switch {
						case i == 7 && !errors.Is(q.Err, blockdev.ErrIO):
							t.Errorf("%s: the bad block reads with error %v as version %d", primary.ID(), q.Err, blockVersion(q.Data))
						case i != 7 && (q.Err != nil || blockVersion(q.Data) != i+1):
							t.Errorf("%s: block %d reads with error %v as version %d", primary.ID(), i, q.Err, blockVersion(q.Data))
						}
					}
					if primary.ID() == "b" {
						break
					}
					g.kill("a")
					primary = g.open(1)
				}
				g.start("a")
				c = g.attachTo(g.open(2))
				g.mustComplete(c, writeVersion(7, 99)) // what is written again is well again, everywhere
				g.kill("b")
				q := readBlock(7)
				g.mustComplete(g.attachTo(g.open(1)), q)
				if blockVersion(q.Data) != 99 {
					t.Errorf("version %d", blockVersion(q.Data))
				}
			})
		})
	}
}

// fill writes until the log has been used once over.
func (g *group) fill(c *client) {
	g.t.Helper()
	data := bytes.Repeat([]byte("filler.."), 1<<20/8)
	for range 2 * int(g.o.logBytes) >> 20 {
		g.mustComplete(c, write(2<<20, data))
	}
}
