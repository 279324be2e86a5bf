package blockdev

import (
	"flag"
	"math/rand/v2"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "seed of the model test; 0 is a random one")
	modelRuns  = flag.Int("model.runs", 20, "runs of the model test; a quarter with -short")
	modelSteps = flag.Int("model.steps", 300, "operations in a run of the model test")
)

// Whatever is done to a store, and whenever the machine crashes: reads give exactly the committed history, what was
// synced is there again, what was cut stays away, and what is applied is committed (B1).
func TestStoreBehavesAsTheModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	runs := *modelRuns
	if testing.Short() || raceEnabled {
		runs = max(1, runs/4)
	}
	for run := range runs {
		if !modelRun(t, seed+uint64(run), StoreOptions{Manual: true}) {
			t.Fatalf("-model.seed=%d", seed+uint64(run))
		}
	}
}

// modelRun tells whether the store behaved. A failure that ends the goroutine has reported itself.
func modelRun(t testing.TB, seed uint64, o StoreOptions) bool {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	defer func() {
		if t.Failed() {
			t.Logf("-model.seed=%d -model.runs=1", seed)
		}
	}()
	fsys := memfs.New()
	o.BootID = "boot"
	r := newRig(t, fsys, "data/replica", o)
	m := &modeller{rig: r, rnd: rnd, fs: fsys}
	for range *modelSteps {
		m.step()
		if t.Failed() {
			return false
		}
	}
	m.verify()
	m.check(m.s.Close())
	return !t.Failed()
}

type modeller struct {
	*rig
	rnd    *rand.Rand
	fs     *memfs.FS
	synced wal.LSN // what a crash must leave
}

func (m *modeller) step() {
	m.t.Helper()
	s := m.s
	switch k := m.rnd.IntN(100); {
	case k < 40:
		m.frame()
	case k < 55:
		m.check(s.Sync())
		m.synced = m.end()
	case k < 72:
		s.Commit(m.someEnd())
	case k < 80:
		for range m.rnd.IntN(4) {
			_, err := s.Step()
			m.check(err)
		}
	case k < 82:
		m.check(s.Checkpoint())
		m.synced = m.end()
	case k < 87:
		m.readSome()
	case k < 90:
		m.cut()
	case k < 92:
		m.verify()
	case k < 94:
		m.check(s.SaveProtocol([]byte{byte(m.end())}))
	case k < 96:
		m.check(s.Close())
		m.synced = m.end()
		m.reopen()
		if !m.s.CleanStart() {
			m.t.Error("stop was clean")
		}
	case k < 98:
		m.check(s.Abandon())
		m.fs.Restart()
		m.reopen()
	default:
		m.crash()
	}
}

func (m *modeller) frame() {
	var ops []histOp
	for range 1 + m.rnd.IntN(4) {
		op := histOp{kind: wal.KindWrite, block: m.rnd.Uint64N(64), count: 1 + m.rnd.Uint64N(4)}
		switch m.rnd.IntN(12) {
		case 0:
			op.block = m.rnd.Uint64N(m.s.Blocks() - 20)
			op.count = 1 + m.rnd.Uint64N(20)
		case 1, 2:
			op.kind = wal.KindTrim
		case 3:
			op.kind, op.flags = wal.KindZero, wal.RecordNoHole
		case 4:
			op.kind = wal.KindTrim
			if m.rnd.IntN(3) == 0 {
				op.kind, op.flags = wal.KindZero, wal.RecordNoHole
			}
			op.block = m.rnd.Uint64N(100)
			op.count = maxZeroEntries + m.rnd.Uint64N(m.s.Blocks()-maxZeroEntries-100)
		case 5:
			op = histOp{kind: wal.KindAttach}
		}
		ops = append(ops, op)
	}
	if m.rnd.IntN(10) == 0 {
		m.epoch++
	}
	switch err := m.try(ops...); err {
	case nil:
	case wal.ErrFull:
		// Everything committed and durable makes room, unless the log is full of what is not.
		m.check(m.s.Sync())
		m.synced = m.end()
		m.s.Commit(m.end())
		m.steps()
		m.check(m.try(ops...))
	default:
		m.t.Fatal(err)
	}
}

// someEnd picks the end of a frame, not before the commit point.
func (m *modeller) someEnd() wal.LSN {
	committed := m.s.Marks().Committed
	i := len(m.ends)
	for i > 0 && m.ends[i-1] > committed {
		i--
	}
	if rest := m.ends[i:]; len(rest) > 0 {
		return rest[m.rnd.IntN(len(rest))]
	}
	return committed
}

func (m *modeller) cut() {
	l := m.someEnd()
	if m.rnd.IntN(2) == 0 {
		l = m.s.Marks().Committed
	}
	m.check(m.s.Cut(l))
	m.forget(l)
	m.synced = min(m.synced, l)
	m.epoch++
}

func (m *modeller) readSome() {
	m.t.Helper()
	block := m.rnd.Uint64N(m.s.Blocks())
	n := 1 + m.rnd.Uint64N(min(300, m.s.Blocks()-block))
	buf := make([]byte, n*BlockSize)
	l := m.s.Marks().Committed
	m.check(m.s.Read(block, buf))
	if err := differs(buf, block, m.content(l)[block:block+n]); err != nil {
		m.t.Fatalf("at %d: %v", l, err)
	}
}

func (m *modeller) crash() {
	m.t.Helper()
	m.s.Abandon()
	fate := memfs.Random(m.rnd.Uint64(), m.rnd.Float64())
	m.fs = m.fs.Crash(fate)
	m.rig.fs, m.rig.o.FS = m.fs, m.fs
	m.reopen()
}

// reopen opens the store and checks what recovery promises. applied is what the image may hold.
func (m *modeller) reopen() {
	m.t.Helper()
	m.open()
	marks := m.s.Marks()
	if marks.End < m.synced || marks.End > m.end() {
		m.t.Fatalf("log ends with %d, synced were %d of %d", marks.End, m.synced, m.end())
	}
	if marks.Committed < marks.Applied || marks.Committed > marks.End {
		m.t.Fatalf("%+v", marks)
	}
	m.forget(marks.End)
	if len(m.ends) > 0 && m.ends[len(m.ends)-1] != m.end() {
		m.t.Fatalf("log ends with %d, inside a frame", marks.End)
	}
	m.synced = marks.End
	m.verify()
}
