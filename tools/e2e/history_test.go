package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// Limits of a history: checking one for linearizability takes time that grows with what is in flight together.
const (
	historyBlocks  = 8
	historyArea    = 48 << 20 // bytes; stamped writes are before it, file systems behind
	historyWorkers = 3        // for each gateway
	historyPace    = 2 * time.Millisecond
	checkLimit     = 60 * time.Second
)

// access is what a client asked for.
type access struct {
	Block int
	Write uint64 // the version written; 0 for a read
}

// history is clients that read and write the same few blocks, through several gateways if need be, and a record of what
// each was told and when. The stamped-write checker has one writer for each block at a time; here there are many, and
// what they see together has to be the history of one disk.
type history struct {
	t      *testing.T
	cancel context.CancelFunc
	all    sync.WaitGroup
	start  time.Time
	seed   uint64

	mu  sync.Mutex
	ops []porcupine.Operation // guarded by mu
}

// record starts the clients, on a disk whose first blocks are zeroes.
func record(t *testing.T, uris ...string) *history {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h := &history{t: t, cancel: cancel, start: time.Now(), seed: seed(t)}
	for i := range len(uris) * historyWorkers {
		w := &recorder{h: h, id: i, uri: uris[i%len(uris)], reader: i < len(uris), rng: rand.New(rand.NewPCG(h.seed, uint64(i)))}
		h.all.Go(func() { w.run(ctx) })
	}
	t.Cleanup(h.stop)
	return h
}

// stop lets every client finish what it is at.
func (h *history) stop() {
	h.cancel()
	h.all.Wait()
}

// goesOn waits until n more operations were answered.
func (h *history) goesOn(n int) {
	h.t.Helper()
	want := h.answered() + n
	must(h.t, cluster.Await(h.t.Context(), serveLimit, "more answers", func() error {
		if have := h.answered(); have < want {
			return fmt.Errorf("%d more are to come", want-have)
		}
		return nil
	}))
}

func (h *history) answered() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		if o.Return != math.MaxInt64 {
			n++
		}
	}
	return n
}

// recorder is one client.
type recorder struct {
	h   *history
	id  int
	uri string
	// reader: it never writes. A cut-off primary cannot answer a write in any case, so those who write wait there, and
	// only one who reads is told what it should not be.
	reader bool
	rng    *rand.Rand
	disk   *stamped.NBD
	n      uint64
}

func (w *recorder) run(ctx context.Context) {
	pace := time.NewTicker(historyPace)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			if w.disk != nil {
				w.disk.Close()
			}
			return
		case <-pace.C:
		}
		if w.disk == nil {
			disk, err := stamped.DialNBD(ctx, w.uri)
			if err != nil {
				continue
			}
			w.disk = disk
			context.AfterFunc(ctx, func() { // a request that is never answered does not keep the test
				time.AfterFunc(serveLimit, func() { disk.Close() })
			})
		}
		w.access()
	}
}

// access does one operation. A write that got no answer may have been done or not, and may be done at any time to come.
func (w *recorder) access() {
	in := access{Block: w.rng.IntN(historyBlocks)}
	buf := make([]byte, blockSize)
	if !w.reader && w.rng.IntN(2) == 0 {
		w.n++
		in.Write = uint64(w.id+1)<<32 | w.n
		binary.LittleEndian.PutUint64(buf, in.Write)
	}
	var err error
	op := porcupine.Operation{ClientId: w.id, Input: in, Call: int64(time.Since(w.h.start))}
	if off := historyArea + uint64(in.Block)*blockSize; in.Write != 0 {
		err = w.disk.WriteAt(buf, off, false)
	} else {
		err = w.disk.ReadAt(buf, off)
	}
	op.Return, op.Output = int64(time.Since(w.h.start)), binary.LittleEndian.Uint64(buf)
	if err != nil {
		w.disk.Close()
		w.disk = nil
		if in.Write == 0 {
			return
		}
		op.Return = math.MaxInt64
		// Another name from now on: to the checker a client has one operation at a time, and this one does not end.
		defer func() { w.id += 1 << 16 }()
	}
	w.h.mu.Lock()
	w.h.ops = append(w.h.ops, op)
	w.h.mu.Unlock()
}

// linearizable ends the recording and checks it. A picture of a history that is not is kept.
func (h *history) linearizable() {
	h.t.Helper()
	h.stop()
	model := porcupine.Model{
		Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
			parts := make([][]porcupine.Operation, historyBlocks)
			for _, o := range ops {
				b := o.Input.(access).Block
				parts[b] = append(parts[b], o)
			}
			return slices.DeleteFunc(parts, func(p []porcupine.Operation) bool { return len(p) == 0 })
		},
		Init: func() any { return uint64(0) },
		Step: func(state, in, out any) (bool, any) {
			if w := in.(access).Write; w != 0 {
				return true, w
			}
			return state == out, state
		},
		DescribeOperation: func(in, out any) string {
			if a := in.(access); a.Write != 0 {
				return fmt.Sprintf("write %d: %x", a.Block, a.Write)
			}
			return fmt.Sprintf("read %d: %x", in.(access).Block, out)
		},
	}
	result, info := porcupine.CheckOperationsVerbose(model, h.ops, checkLimit)
	h.t.Logf("%d operations, %d answered: %v", len(h.ops), h.answered(), result)
	if result == porcupine.Ok {
		return
	}
	picture := filepath.Join(os.TempDir(), fmt.Sprintf("lockstep-history-%d.html", h.seed))
	if err := porcupine.VisualizePath(model, info, picture); err != nil {
		picture = err.Error()
	}
	h.t.Errorf("the history is not that of one disk (%v); see %s", result, picture)
}
