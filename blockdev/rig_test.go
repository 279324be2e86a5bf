package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"path"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// rig drives a Store and knows what it must hold: the whole history, and the content at each LSN.
type rig struct {
	t    testing.TB
	fs   vfs.FS
	dir  string
	o    StoreOptions
	s    *Store
	b    wal.Builder
	hist []histOp // hist[l-1] is record l
	ends []wal.LSN

	epoch wal.Epoch
	next  uint64 // stamp of the next write
}

type histOp struct {
	kind  wal.Kind
	flags uint8
	block uint64
	count uint64
	stamp uint64 // of its first block; the others follow

	session, number uint64
}

const (
	testVolume  = 8 << 20
	testSegment = 256 << 10
	testLog     = 8 * testSegment
)

func testIdentity() Identity {
	return Identity{Cluster: "c", Volume: "v", Replica: "r", VolumeName: "vol0", Size: testVolume}
}

func newRig(t testing.TB, fsys vfs.FS, dir string, o StoreOptions) *rig {
	t.Helper()
	o.FS, o.Dir = fsys, dir
	if o.BootID == "" {
		o.BootID = "boot"
	}
	r := &rig{t: t, fs: fsys, dir: dir, o: o, epoch: 1, next: 1}
	r.check(Format(fsys, dir, FormatOptions{Identity: testIdentity(), LogBytes: testLog, SegmentBytes: testSegment}))
	r.open()
	return r
}

// osRig is a rig on a real directory.
func osRig(t testing.TB, o StoreOptions) *rig {
	return newRig(t, vfs.OS{}, path.Join(t.TempDir(), "replica"), o)
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) open() {
	r.t.Helper()
	s, err := OpenStore(r.o)
	r.check(err)
	r.s = s
}

func (r *rig) end() wal.LSN { return wal.LSN(len(r.hist)) }

// keptStamp is the stamp of zeroes whose space stays allocated; that of a hole is 0.
const keptStamp = math.MaxUint64

func stampBlock(b []byte, block, stamp uint64) {
	if stamp == 0 || stamp == keptStamp {
		clear(b)
		return
	}
	x := block*fibonacci ^ stamp
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], x)
		x = x*6364136223846793005 + stamp
	}
}

func write(block, count uint64) histOp {
	return histOp{kind: wal.KindWrite, block: block, count: count}
}
func trim(block, count uint64) histOp { return histOp{kind: wal.KindTrim, block: block, count: count} }

// seal makes the next frame.
func (r *rig) seal(ops ...histOp) wal.Frame {
	r.t.Helper()
	r.b.Reset()
	r.b.MaxBytes = r.s.MaxFrame()
	for i := range ops {
		op := &ops[i]
		rec := wal.Record{Kind: op.kind, Flags: op.flags, Block: op.block, Count: uint32(op.count),
			Session: op.session, Seq: op.number}
		var data []byte
		var sums []uint32
		if op.kind == wal.KindWrite {
			op.stamp = r.next
			r.next += op.count
			data = make([]byte, op.count*BlockSize)
			for k := range op.count {
				d := data[k*BlockSize : (k+1)*BlockSize]
				stampBlock(d, op.block+k, op.stamp+k)
				sums = append(sums, wal.BlockSum(op.block+k, d))
			}
		}
		if !r.b.Add(rec, data, sums) {
			r.t.Fatal("frame is full")
		}
	}
	m := r.s.Marks()
	return r.b.Seal(wal.Header{
		Salt: r.s.Salt(), Epoch: r.epoch, First: m.End + 1, Chain: r.s.EndSum(),
		Commit: m.Committed, Stable: min(m.Committed, m.Durable),
	})
}

// try appends a frame of these operations and notes it in the history if it was taken.
func (r *rig) try(ops ...histOp) error {
	f := r.seal(ops...)
	err := r.s.Append(f)
	if err == nil {
		r.hist = append(r.hist, ops...)
		r.ends = append(r.ends, r.end())
	}
	return err
}

func (r *rig) append(ops ...histOp) {
	r.t.Helper()
	r.check(r.try(ops...))
}

// put appends, syncs and commits.
func (r *rig) put(ops ...histOp) {
	r.t.Helper()
	r.append(ops...)
	r.check(r.s.Sync())
	r.s.Commit(r.end())
}

// forget drops the history behind l: it was cut or lost.
func (r *rig) forget(l wal.LSN) {
	r.hist = r.hist[:l]
	for len(r.ends) > 0 && r.ends[len(r.ends)-1] > l {
		r.ends = r.ends[:len(r.ends)-1]
	}
}

// content gives the stamps of all blocks at l.
func (r *rig) content(l wal.LSN) []uint64 {
	state := make([]uint64, r.s.Blocks())
	for _, op := range r.hist[:l] {
		if end := op.block + op.count; end > uint64(len(state)) { // the store is too small, as whoever compares will find
			state = append(state, make([]uint64, end-uint64(len(state)))...)
		}
		for k := range op.count {
			switch op.kind {
			case wal.KindWrite:
				state[op.block+k] = op.stamp + k
			case wal.KindZero, wal.KindTrim:
				state[op.block+k] = 0
				if op.flags&wal.RecordNoHole != 0 {
					state[op.block+k] = keptStamp
				}
			}
		}
	}
	return state
}

// verify compares everything that Read and Extent give with the history at the commit point, and everything that
// ReadNewest gives with the history's end.
func (r *rig) verify() {
	r.t.Helper()
	r.check(extentsDiffer(r.s, r.content(r.s.Marks().Committed), r.s.Blocks()))
	r.verifyRead(r.s.Read, r.s.Marks().Committed)
	r.verifyRead(r.s.ReadNewest, r.s.Marks().End)
}

func (r *rig) verifyRead(read func(uint64, []byte) error, l wal.LSN) {
	r.t.Helper()
	got := make([]byte, r.s.Blocks()*BlockSize)
	r.check(read(0, got))
	if err := differs(got, 0, r.content(l)); err != nil {
		r.t.Fatalf("at %d (%+v): %v", l, r.s.Marks(), err)
	}
}

func differs(got []byte, block uint64, stamps []uint64) error {
	want := make([]byte, BlockSize)
	for i, stamp := range stamps {
		stampBlock(want, block+uint64(i), stamp)
		if !bytes.Equal(got[i*BlockSize:(i+1)*BlockSize], want) {
			return fmt.Errorf("block %d is not stamp %d but %x", block+uint64(i), stamp, got[i*BlockSize:i*BlockSize+16])
		}
	}
	return nil
}

// extentsDiffer compares what Extent tells of all blocks, asked about up to so many at a time, with their stamps.
func extentsDiffer(s *Store, stamps []uint64, most uint64) error {
	state := func(stamp uint64) ExtentState {
		switch stamp {
		case 0:
			return ExtentHole | ExtentZero
		case keptStamp:
			return ExtentZero
		}
		return 0
	}
	for b := uint64(0); b < uint64(len(stamps)); {
		n, got, err := s.Extent(b, most)
		if err != nil {
			return err
		}
		if n == 0 || n > most {
			return fmt.Errorf("extent of %d blocks, of at most %d", n, most)
		}
		for i := range n {
			if want := state(stamps[b+i]); got != want {
				return fmt.Errorf("block %d is said to be in state %d, not %d", b+i, got, want)
			}
		}
		if next := b + n; n < most && next < uint64(len(stamps)) && state(stamps[next]) == got {
			return fmt.Errorf("extent of block %d ends at %d without need", b, next)
		}
		b += n
	}
	return nil
}

// steps does all background work of a Manual store.
func (r *rig) steps() {
	r.t.Helper()
	for {
		did, err := r.s.Step()
		r.check(err)
		if !did {
			return
		}
	}
}

// FrameEnd gives the last LSN of the frame that holds l; false if that frame is applied already or not there.
func (s *Store) FrameEnd(l wal.LSN) (wal.LSN, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.pending.frameAt(l)
	return f.last, ok
}
