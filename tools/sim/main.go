package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The garbage collector is lazy while there is room, and busy at the limit.
const (
	gcPercent   = 400
	memoryLimit = 1 << 30
)

// How many seeds it takes for everything that is counted to happen at least once, but for what is rare, and with it.
const (
	enoughSeeds  = 2000
	enoughForAll = 20000
)

func main() {
	var (
		seed    = flag.Uint64("seed", 0, "play only this seed")
		trace   = flag.Bool("trace", false, "print what happens, one line an event")
		seeds   = flag.Uint64("seeds", 2000, "how many seeds to play")
		first   = flag.Uint64("first", 1, "the first of them")
		soak    = flag.Duration("soak", 0, "play seeds for so long instead")
		profile = flag.String("cpuprofile", "", "write a CPU profile to this file")
		stop    = flag.Bool("stop", false, "stop at the first seed that fails")
		only    = flag.String("faults", "", "play only these kinds of faults, separated by commas, and with leases, claims, three copies")
		hunt    = flag.String("mutants", "", "break one rule of the protocol at a time, \"all\" or the one that is named, and look whether it is found")
		workers = flag.Int("workers", runtime.NumCPU(), "how many to play at a time")
	)
	flag.Parse()
	debug.SetGCPercent(gcPercent) // a run makes much garbage, of which little lives long
	debug.SetMemoryLimit(memoryLimit)
	like, err := parseProfile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(64)
	}
	if *hunt != "" {
		os.Exit(huntAll(*hunt, int(*seeds)))
	}
	if *seed != 0 {
		os.Exit(playOne(*seed, like, *trace))
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		pprof.StartCPUProfile(f)
	}
	code := playMany(*first, *seeds, *soak, *workers, like, *stop)
	pprof.StopCPUProfile()
	os.Exit(code)
}

func playOne(seed uint64, like profile, trace bool) int {
	var tr func(string)
	if trace {
		tr = func(l string) { fmt.Println(l) }
	}
	c := newCluster(seed, like, tr)
	bad := c.run()
	fmt.Printf("seed %d: %d machines, %d copies, %d views, %d operations answered, %v, %d turns\n", seed, len(c.machines), c.copies,
		len(c.views.history), c.w.stats.acks, c.w.now, c.w.turns)
	if bad != "" {
		fmt.Println("FAIL", bad)
		return 1
	}
	return 0
}

// maxTraces is how many failing seeds leave a trace.
const maxTraces = 3

// keepTrace plays a seed that failed once more, writes down what happens, one line an event, and tells where.
func keepTrace(seed uint64, like profile, bad string) string {
	f, err := os.CreateTemp("", fmt.Sprintf("sim-seed-%d-*.txt", seed))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	out := bufio.NewWriter(f)
	again := newCluster(seed, like, func(l string) { fmt.Fprintln(out, l) }).run()
	if err := out.Flush(); err != nil {
		return err.Error()
	}
	if again != bad && !strings.Contains(bad, "see ") { // a page that was kept has another name each time
		return fmt.Sprintf("seed %d fails in another way when it is played again: %s", seed, again)
	}
	return fmt.Sprintf("seed %d: what happened is in %s", seed, f.Name())
}

func playMany(first, n uint64, soak time.Duration, workers int, like profile, stop bool) int {
	var (
		next   atomic.Uint64
		over   atomic.Bool
		mu     sync.Mutex
		total  stats
		failed int
		wg     sync.WaitGroup
	)
	began := time.Now()
	next.Store(first)
	for range workers {
		wg.Go(func() {
			for {
				s := next.Add(1) - 1
				if soak > 0 && time.Since(began) > soak || soak == 0 && s >= first+n || stop && over.Load() {
					return
				}
				c := newCluster(s, like, nil)
				bad := c.run()
				mu.Lock()
				total.add(&c.w.stats)
				keep := false
				if bad != "" {
					failed++
					over.Store(true)
					fmt.Printf("FAIL seed %d: %s\n", s, bad)
					keep = !stop && failed <= maxTraces
				}
				mu.Unlock()
				if keep {
					fmt.Println(keepTrace(s, like, bad))
				}
			}
		})
	}
	wg.Wait()
	played := next.Load() - first - uint64(workers)
	took := time.Since(began)
	fmt.Printf("%d seeds in %v (%.1f ms each on %d workers), %d failed, %d operations answered\n", played, took.Round(time.Millisecond),
		took.Seconds()*1000*float64(workers)/float64(played), workers, failed, total.acks)
	for x, name := range sometimesNames {
		fmt.Printf("%8d %s\n", total.seen[x], name)
		if total.seen[x] == 0 && len(like.faults) == 0 && (played >= enoughForAll || played >= enoughSeeds && !rare[sometimes(x)]) {
			fmt.Printf("FAIL in %d seeds there was never: %s\n", played, name)
			failed++
		}
	}
	if failed > 0 {
		return 1
	}
	return 0
}
