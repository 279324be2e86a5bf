package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"testing"

	"lockstep/wal"

	"lockstep/wal/vfs/memfs"
)

// What was there stays as it is, what is new reads as zeroes and takes writes, here and after each way of stopping.
func TestGrownReplicaKeepsItsContent(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(0, 5), write(r.s.Blocks()-2, 2), trim(1, 1))
	r.steps()
	r.append(write(7, 2)) // neither stable nor committed
	for i, blocks := range []uint64{r.s.Blocks() + 1, 9 * RegionBlocks, 3*sumsPerPage - 1, 5 * sumsPerPage} {
		r.check(r.s.Grow(blocks * BlockSize))
		if r.s.Blocks() != blocks || r.s.Identity().Size != blocks*BlockSize {
			t.Fatalf("%d blocks after growing to %d", r.s.Blocks(), blocks)
		}
		r.put(write(blocks-1, 1), write(blocks/2, 3))
		if i%2 == 0 {
			r.steps()
		}
		if n, state, err := r.s.Extent(blocks-8, 100); i > 0 && (n != 7 || state != ExtentHole|ExtentZero || err != nil) {
			t.Errorf("the end's extent: %d blocks, state %d, %v", n, state, err)
		}
		if i == 1 {
			r.check(r.s.Abandon())
		} else {
			r.check(r.s.Close())
		}
		r.open()
		r.s.Commit(r.end())
		r.verify()
		if reg, ok := r.s.NewerRegions(r.end()-2, 0); !ok || uint64(reg) != blocks/2/RegionBlocks {
			t.Errorf("region %d, %v is said to have changed last", reg, ok)
		}
	}
	r.check(r.s.Close())
	x, err := Inspect(os.DirFS(r.dir))
	r.check(err)
	v, err := x.Verify()
	r.check(err)
	if !v.Sound() || v.Written == 0 {
		t.Errorf("%+v", v)
	}
}

// Growing to what it has, or to less, is nothing to do; a size that makes no sense is refused.
func TestGrowNeverShrinks(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	had := r.s.Size()
	r.check(r.s.Grow(had))
	r.check(r.s.Grow(BlockSize))
	for _, size := range []uint64{0, had + 1, MaxVolumeBytes + BlockSize} {
		if r.s.Grow(size) == nil {
			t.Errorf("took a size of %d bytes", size)
		}
	}
	if r.s.Size() != had {
		t.Errorf("%d bytes, had %d", r.s.Size(), had)
	}
}

// B11, at the door: a record beyond the replica's size does not get in, and neither does the record of a size that it
// does not have.
func TestNoRecordGoesBeyondTheSize(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	blocks := r.s.Blocks()
	sized := histOp{kind: wal.KindView, number: blocks + 1}
	beyond := write(blocks, 1)
	for range 2 {
		if err := r.try(sized); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("a VIEW record of %d blocks at a replica of %d: %v", sized.number, r.s.Blocks(), err)
		}
		if err := r.try(beyond); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("a write to block %d of %d: %v", beyond.block, r.s.Blocks(), err)
		}
		r.check(r.s.Grow(sized.number * BlockSize))
		r.put(sized)
		r.put(write(beyond.block, 1))
		sized.number, beyond.block = blocks+RegionBlocks, blocks+1
	}
	r.check(r.s.Abandon())
	r.open()
	r.verify()
}

// Readers, the committer and the applier go on while the replica grows.
func TestEverybodyGoesOnWhileItGrows(t *testing.T) {
	r := osRig(t, StoreOptions{})
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for i := range 3 {
		readers.Go(func() {
			dst := make([]byte, 4*BlockSize)
			for n := uint64(i); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				blocks := r.s.Blocks()
				at := n * 7 % (blocks - 3)
				if n%3 == 0 {
					at = blocks - 4 // what is new just now
				}
				if err := r.s.Read(at, dst); err != nil {
					t.Error(err)
					return
				}
				r.s.ReadCached(at, dst)
				if _, _, err := r.s.Extent(at, blocks); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	grown := make(chan error, 1)
	first := r.s.Blocks()
	go func() {
		var err error
		for i := uint64(1); i <= 20 && err == nil; i++ {
			err = r.s.Grow((first + i*i*37) * BlockSize)
		}
		grown <- err
	}()
	for done := false; !done; {
		select {
		case err := <-grown:
			r.check(err)
			done = true
		default:
		}
		blocks := r.s.Blocks()
		r.put(write(blocks-1, 1), write(r.next%(blocks-2), 2), trim(r.next*31%(blocks-9), 8))
		r.check(r.s.Checkpoint())
	}
	close(stop)
	readers.Wait()
	r.verify()
	r.check(r.s.Close())
	r.open()
	r.verify()
	r.check(r.s.Close())
}

// A file system that has no room, or no such large files, refuses; nothing is lost or poisoned, and the next try is as good
// as the first, also after a restart.
func TestGrowIsTriedAgainAfterTheFileSystemRefused(t *testing.T) {
	for _, name := range []string{imageName, sumsName, regionsName} {
		for _, cause := range []error{syscall.ENOSPC, syscall.EFBIG} {
			t.Run(fmt.Sprint(name, " ", cause), func(t *testing.T) {
				m := memfs.New()
				r := newRig(t, m, "r", StoreOptions{Manual: true})
				had, want := r.s.Size(), uint64(900*RegionBytes)
				r.put(write(0, 3))
				m.Inject(func(op memfs.Op) memfs.Effect {
					if op.Kind == "truncate" && path.Base(op.Name) == name {
						return memfs.Effect{Err: cause}
					}
					return memfs.Effect{}
				})
				for range 2 {
					if err := r.s.Grow(want); !errors.Is(err, cause) || !strings.Contains(err.Error(), name) {
						t.Fatal(err)
					}
					if r.s.Err() != nil || r.s.Size() != had {
						t.Fatalf("%d bytes, had %d, store: %v", r.s.Size(), had, r.s.Err())
					}
					r.put(write(5, 1))
					r.check(r.s.Close())
					r.open()
				}
				m.Inject(nil)
				r.check(r.s.Grow(want + RegionBytes))
				if r.s.Size() != want+RegionBytes {
					t.Errorf("%d bytes", r.s.Size())
				}
				r.put(write(r.s.Blocks()-1, 1))
				r.check(r.s.Read(r.s.Blocks()-1, make([]byte, BlockSize)))
			})
		}
	}
}

// W5: what a failed sync was to make stable is believed by nobody.
func TestFailedSyncOfAGrowPoisons(t *testing.T) {
	for _, name := range []string{imageName, sumsName, regionsName, metaName} {
		m := memfs.New()
		r := newRig(t, m, "r", StoreOptions{Manual: true})
		had := r.s.Size()
		m.Inject(func(op memfs.Op) memfs.Effect {
			if op.Kind == "sync" && path.Base(op.Name) == name {
				return memfs.Effect{Err: syscall.EIO}
			}
			return memfs.Effect{}
		})
		if err := r.s.Grow(2 * had); !errors.Is(err, syscall.EIO) || r.s.Err() == nil || r.s.Size() != had {
			t.Errorf("%s: %v, store: %v, %d bytes", name, err, r.s.Err(), r.s.Size())
		}
	}
}

// While a grow is unfinished a file may be longer than the volume, up to what was wanted. Any other length is damage, as ever.
func TestOpenKnowsTheLengthsOfAnUnfinishedGrow(t *testing.T) {
	m := memfs.New()
	r := newRig(t, m, "r", StoreOptions{Manual: true})
	had, want := r.s.Size(), uint64(900*RegionBytes)
	m.Inject(func(op memfs.Op) memfs.Effect {
		if op.Kind == "truncate" {
			return memfs.Effect{Err: syscall.ENOSPC}
		}
		return memfs.Effect{}
	})
	if r.s.Grow(want) == nil {
		t.Fatal("it grew")
	}
	m.Inject(nil)
	r.check(r.s.Close())
	for _, c := range []struct {
		length uint64
		ok     bool
	}{{want, true}, {had, true}, {had + BlockSize, true}, {want + BlockSize, false}, {had - BlockSize, false}} {
		f, err := m.Open("r/" + imageName)
		r.check(err)
		r.check(f.Truncate(int64(c.length)))
		r.check(f.Close())
		s, err := OpenStore(r.o)
		var damaged *DamagedError
		if c.ok != (err == nil) || !c.ok && !errors.As(err, &damaged) {
			t.Errorf("an image of %d bytes, of a replica of %d that was growing to %d: %v", c.length, had, want, err)
		}
		if err == nil {
			r.check(s.Close())
		}
	}
}

// A volume is sparse: a TiB more costs next to nothing, on disk and in time.
func TestGrowingByATiBTakesNoSpace(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.check(r.s.Grow(1 << 40))
	r.put(write(r.s.Blocks()-1, 1))
	r.check(r.s.Close())
	for _, name := range []string{imageName, sumsName, regionsName} {
		var st syscall.Stat_t
		r.check(syscall.Stat(path.Join(r.dir, name), &st))
		if taken := st.Blocks * 512; taken > 1<<20 {
			t.Errorf("%s takes %d bytes", name, taken)
		}
	}
}
