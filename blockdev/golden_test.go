package blockdev

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// goldenReplica makes a small replica with every structure that there is on disk: both slots of meta with epochs, texts and
// protocol state; an image with sums and regions; a session; a log with every kind of record, applied, committed, and cut,
// with the end mark of a cut that a crash interrupted.
func goldenReplica(t testing.TB, m *memfs.FS) {
	r := &rig{t: t, fs: m, dir: "golden", epoch: 1, next: 1}
	r.o = StoreOptions{FS: m, Dir: r.dir, BootID: "boot", Manual: true}
	r.check(Format(m, r.dir, crashFormat()))
	r.open()
	var b wal.Builder
	frame := func(epoch wal.Epoch, recs ...wal.Record) {
		t.Helper()
		b.Reset()
		for _, rec := range recs {
			var data []byte
			var sums []uint32
			if rec.Kind == wal.KindWrite {
				data = make([]byte, int(rec.Count)*BlockSize)
				for i := range int(rec.Count) {
					d := data[i*BlockSize : (i+1)*BlockSize]
					copy(d, fmt.Sprintf("block %d", rec.Block+uint64(i)))
					sums = append(sums, wal.BlockSum(rec.Block+uint64(i), d))
				}
			}
			b.Add(rec, data, sums)
		}
		mk := r.s.Marks()
		r.check(r.s.Append(b.Seal(wal.Header{
			Salt: r.s.Salt(), Epoch: epoch, Incarnation: 1, First: mk.End + 1, Chain: r.s.EndSum(),
			Commit: mk.Committed, Stable: mk.Committed, Flags: wal.FlagSync, Time: 1_700_000_000_000_000_000,
		})))
		r.check(r.s.Sync())
	}
	frame(1, wal.Record{Kind: wal.KindView, Block: 1}, wal.Record{Kind: wal.KindAttach, Session: 0x5e55, Seq: 3},
		wal.Record{Kind: wal.KindWrite, Block: 0, Count: 2, Session: 0x5e55, Seq: RequestID(1, 7)})
	frame(1, wal.Record{Kind: wal.KindWrite, Block: 3*RegionBlocks - 1, Count: 2})
	frame(4, wal.Record{Kind: wal.KindTrim, Block: 1, Count: 1},
		wal.Record{Kind: wal.KindZero, Flags: wal.RecordNoHole, Block: 8, Count: 2})
	r.s.Commit(r.s.Marks().End)
	r.check(r.s.SaveProtocol([]byte("view 4")))
	r.check(r.s.Checkpoint())
	frame(4, wal.Record{Kind: wal.KindWrite, Block: 2, Count: 1})
	committed := r.s.Marks().End
	r.s.Commit(committed)
	frame(4, wal.Record{Kind: wal.KindWrite, Block: 2, Count: 1})
	frame(4, wal.Record{Kind: wal.KindWrite, Block: 4, Count: 1})
	// The cut gets as far as its end mark.
	m.Inject(func(op memfs.Op) memfs.Effect {
		if op.Kind == "sync" && strings.Contains(op.Name, walName) {
			m.StopAt(m.Ops() + 1)
		}
		return memfs.Effect{}
	})
	if err := r.s.Cut(committed); err == nil {
		t.Fatal("the cut was not stopped")
	}
	r.s.Abandon()
	m.Restart()
}

const golden = "testdata/replica-v1.txt"

// dump lists what is in a replica's files, where it is not zero.
func dump(t testing.TB, m *memfs.FS, dir string) []byte {
	var out bytes.Buffer
	var list func(string)
	list = func(name string) {
		full := path.Join(dir, name)
		if names, err := m.List(full); err == nil && len(names) > 0 {
			for _, n := range names {
				list(path.Join(name, n))
			}
			return
		}
		f, err := m.Open(full)
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %d\n", name, size)
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil && size > 0 {
			t.Fatal(err)
		}
		for off := 0; off < len(b); off += 16 {
			if row := b[off:min(off+16, len(b))]; len(bytes.Trim(row, "\x00")) > 0 {
				fmt.Fprintf(&out, "%08x  %x\n", off, row)
			}
		}
	}
	list("")
	return out.Bytes()
}

// undump makes the files of a dump.
func undump(t testing.TB, text []byte, m *memfs.FS, dir string) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(m.MkdirAll(path.Join(dir, walName)))
	var write func(off int64, b []byte)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var name, row string
		var n int64
		if !strings.Contains(lines.Text(), "  ") {
			_, err := fmt.Sscanf(lines.Text(), "%s %d", &name, &n)
			must(err)
			f, err := m.Create(path.Join(dir, name))
			must(err)
			must(f.Truncate(n))
			write = func(off int64, b []byte) {
				_, err := f.WriteAt(b, off)
				must(err)
			}
			continue
		}
		_, err := fmt.Sscanf(lines.Text(), "%x %s", &n, &row)
		must(err)
		b, err := hex.DecodeString(row)
		must(err)
		write(n, b)
	}
}

// The layout on disk, of every structure, does not change under replicas that exist.
func TestReplicaOnDiskIsGolden(t *testing.T) {
	m := memfs.New()
	goldenReplica(t, m)
	got := dump(t, m, "golden")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	have, due := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(have), len(due)) {
		if i >= len(have) || i >= len(due) || have[i] != due[i] {
			t.Fatalf("line %d of %s differs: now %q", i+1, golden, append(have, "")[min(i, len(have))])
		}
	}
}

// A replica that this version wrote long ago opens, with everything in it.
func TestGoldenReplicaOpens(t *testing.T) {
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	m := memfs.New()
	undump(t, text, m, "r")
	s, err := OpenStore(StoreOptions{FS: m, Dir: "r", BootID: "boot", Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abandon()
	if mk := s.Marks(); mk.Checkpoint != 6 || mk.Committed != 7 || mk.End != 7 {
		t.Errorf("%+v", mk)
	}
	if s.Incarnation() != 2 || !s.SameBoot() || s.CleanStart() || string(s.Protocol()) != "view 4" || s.Identity().VolumeName != "vol0" {
		t.Errorf("incarnation %d, protocol state %q, %+v", s.Incarnation(), s.Protocol(), s.Identity())
	}
	if e := s.Epochs(); len(e) != 2 || e[0] != (EpochStart{1, 1}) || e[1] != (EpochStart{4, 5}) {
		t.Errorf("epochs %v", e)
	}
	if x := s.Session(0x5e55); x.Generation != 3 || len(x.Slots) != 2 || x.Slots[1] != 7 {
		t.Errorf("session %+v", x)
	}
	for block, want := range map[uint64]string{0: "block 0", 1: "", 2: "block 2", 3: "", 4: "", 8: "", 767: "block 767", 768: "block 768"} {
		got := make([]byte, BlockSize)
		if err := s.Read(block, got); err != nil || strings.TrimRight(string(got), "\x00") != want {
			t.Errorf("block %d: %.10q, %v", block, got, err)
		}
	}
	for than, want := range map[wal.LSN]int{0: 0, 4: 0, 7: -1} {
		if reg, ok := s.NewerRegions(than, 0); ok != (want >= 0) || ok && reg != want {
			t.Errorf("newer than %d is region %d, %v", than, reg, ok)
		}
	}
}
