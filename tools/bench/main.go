// Command bench measures Lockstep and, in the same run, on the same file system and with the same client, nbdkit,
// the NBD server that others are compared with. It prints a Markdown table.
//
//	go run ./tools/bench                 5 seconds per cell, some 4 minutes in all
//	go run ./tools/bench -seconds 20 -json > result.json
//
// What is compared. Every server is on this machine and is reached over TCP on the loopback interface. Lockstep is
// `lockstep dev`: a gateway, a primary and a backup, that is three processes that share the cores with fio, and two
// copies of every block. nbdkit is one process with one copy, twice: "durable" forces every write to stable storage
// before it is acknowledged (filter fua), as Lockstep's sync mode always does on both copies; "page cache"
// acknowledges from memory, as sync mode flush does on both copies. A power failure loses writes that the latter two
// acknowledged and nobody flushed. So the fair pairs are always : durable and flush : page cache; the ratios in the
// table are of these pairs.
//
// Reads come from data that was just written and so, here, from the page cache.
//
// The second table is the price of the gateway: a volume of the same kind, sync mode always, through the gateway and at the
// primary's own address, by turns (-hop for this alone).
//
// Needed: fio and nbdkit. The processes and files are gone when it ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"lockstep/tools/e2e/cluster"
)

// options are the command line.
type options struct {
	cluster.Tool
	seconds   float64
	megabytes int
	hop       bool // only the gateway's hop
}

func main() {
	o := options{Tool: cluster.Tool{Name: "bench"}}
	o.Flags()
	flag.Float64Var(&o.seconds, "seconds", 5, "per cell of the table")
	flag.IntVar(&o.megabytes, "size", 512, "size of the disks in MiB")
	flag.BoolVar(&o.hop, "hop", false, "measure only what the gateway costs")
	flag.Parse()
	needs := []string{"fio", "nbdkit"}
	if o.hop {
		needs = needs[:1]
	}
	o.Main(needs, func(ctx context.Context, dir string) (cluster.Report, error) { return run(ctx, o, dir) })
}

// report is everything that was measured.
type report struct {
	Machine   machine  `json:"machine"`
	Seconds   float64  `json:"seconds_per_cell"`
	Servers   []server `json:"servers"`
	Hops      []hop    `json:"hops"`
	workloads []workload
}

// server is the measurements of one server, in the order of the workloads.
type server struct {
	Name  string `json:"name"`
	Cells []cell `json:"cells"`
}

// run measures everything.
func run(ctx context.Context, o options, dir string) (r report, err error) {
	r = report{Seconds: o.seconds, workloads: workloads}
	if r.Hops, err = measureHop(ctx, o, filepath.Join(dir, "hop")); err != nil {
		return r, fmt.Errorf("hop: %w", err)
	}
	if o.hop {
		return r, nil
	}
	r.Machine = describe(ctx, dir)
	for _, c := range contenders {
		s, err := measure(ctx, o, filepath.Join(dir, "disk"), c, r.workloads)
		if err != nil {
			return r, fmt.Errorf("%s: %w", c.name, err)
		}
		r.Servers = append(r.Servers, s)
	}
	return r, nil
}

// measure runs workloads against one server, which has the directory to itself.
func measure(ctx context.Context, o options, dir string, c contender, loads []workload) (server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return server{}, err
	}
	defer os.RemoveAll(dir)
	uri, stop, err := c.start(ctx, o, dir)
	if err != nil {
		return server{}, err
	}
	defer stop()
	s := server{Name: c.name}
	if err := fill(ctx, uri, o.megabytes); err != nil {
		return s, err
	}
	for _, w := range loads {
		fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, w.name)
		cell, err := runFio(ctx, uri, w, o)
		if err != nil {
			return s, fmt.Errorf("%s: %w", w.name, err)
		}
		s.Cells = append(s.Cells, cell)
	}
	return s, nil
}
