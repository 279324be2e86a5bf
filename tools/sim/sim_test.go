package main

import (
	"context"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"

	"lockstep/blockdev"
	"lockstep/tools/mutant"
)

// A run is one goroutine at a time, so that the race detector finds nothing in it and makes it ten times as slow. The
// many seeds are played by a program of its own that is built without it.

func TestSeedsKeepTheRules(t *testing.T) {
	if testing.Short() {
		t.Skip("plays thousands of seeds")
	}
	root, err := mutant.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "sim")
	build := exec.Command("go", "build", "-o", binary, "./tools/sim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), binary, "-seeds", "2000").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("%v; `go run ./tools/sim -seed N -trace` shows what happened", err)
	}
}

func TestEachBrokenRuleIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("plays thousands of seeds")
	}
	binary, err := buildMutants(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range rules {
		t.Run(m.name, func(t *testing.T) {
			found, err := m.hunt(t.Context(), binary, huntSeeds)
			if err != nil {
				t.Fatal(err)
			}
			if found == "" {
				t.Errorf("nothing was noticed in %d seeds", huntSeeds)
			}
			t.Log(found)
		})
	}
}

// traceOf plays a seed and returns what happened.
func traceOf(seed uint64) string {
	var b strings.Builder
	newCluster(seed, profile{}, func(l string) { b.WriteString(l + "\n") }).run()
	return b.String()
}

func TestASeedReplaysExactly(t *testing.T) {
	for seed := range uint64(12) {
		first, again := traceOf(seed), traceOf(seed)
		if first == again {
			continue
		}
		a, b := strings.Split(first, "\n"), strings.Split(again, "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Fatalf("seed %d: line %d is\n%s\nthen\n%s", seed, i, a[i], b[i])
			}
		}
		t.Fatalf("seed %d: %d lines, then %d", seed, len(a), len(b))
	}
}

func TestAStaleReadIsNoticed(t *testing.T) {
	h := &history{}
	write := func(id uint64) *op {
		o := &op{first: 3, count: 1, id: id}
		o.req.Op = blockdev.OpWrite
		h.call(o)
		return o
	}
	read := func(v uint64) {
		o := &op{first: 3, count: 1, vals: []uint64{v}}
		o.req.Op = blockdev.OpRead
		h.call(o)
		h.done(o)
	}
	h.done(write(1))
	write(2) // its answer was lost
	read(1)
	read(2)
	if b := h.check(); b != nil {
		t.Fatal("a write of which nobody knows when it happened may happen between two reads")
	}
	read(1)
	b := h.check()
	if b == nil {
		t.Fatal("a read that goes back was not noticed")
	}
	where := strings.TrimPrefix(b.keep(), ": see ")
	defer os.Remove(where)
	if page, err := os.ReadFile(where); err != nil || !strings.Contains(string(page), "<html") {
		t.Errorf("the history was not kept as a page: %v", err)
	}
	if porcupine.CheckOperations(register(0), []porcupine.Operation{{Input: access{true, 1}, Call: 1, Return: math.MaxInt64}}) != true {
		t.Error("a lone write is no history")
	}
}

func TestTornAndMisplacedSectorsAreNoticed(t *testing.T) {
	b := make([]byte, sector)
	stamp(b, 7, 99)
	if id, err := unstamp(b, 7); id != 99 || err != nil {
		t.Errorf("write %d, %v", id, err)
	}
	if _, err := unstamp(b, 8); err == nil {
		t.Error("a sector in another's place was not noticed")
	}
	b[300] ^= 1
	if _, err := unstamp(b, 7); err == nil {
		t.Error("a torn sector was not noticed")
	}
}

// A killed process's coroutines end where they wait, with whatever they hold.
func TestAKilledProcessStops(t *testing.T) {
	w := &world{rng: newRand(1)}
	p := w.newProc("p")
	ended, went := 0, 0
	mu := p.Mutex()
	for range 3 {
		p.Go(func() {
			defer func() { ended++ }()
			mu.Lock()
			defer mu.Unlock()
			p.Alarm().Wait(context.Background(), 1<<61)
			went++
		})
	}
	w.run(1, nil)
	p.kill()
	w.run(2, nil)
	// One waited with the lock held, the others for it.
	if ended != 3 || went != 0 || w.bad != "" {
		t.Errorf("%d ended, %d went on, %s", ended, went, w.bad)
	}
}

func TestATraceIsKeptAndIsThatOfTheSeed(t *testing.T) {
	said := keepTrace(5, profile{}, "")
	_, name, ok := strings.Cut(said, " is in ")
	if !ok {
		t.Fatal(said)
	}
	defer os.Remove(name)
	kept, err := os.ReadFile(name)
	if err != nil || len(kept) == 0 || string(kept) != traceOf(5) {
		t.Errorf("%d bytes in %s are not the trace: %v", len(kept), name, err)
	}
	if said := keepTrace(5, profile{}, "another failure"); !strings.Contains(said, "another way") {
		t.Errorf("a seed that fails otherwise when it is played again: %q", said)
	}
}
