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
// The second table is the pause that one client sees, which writes 4 KiB after 4 KiB, when the primary is killed with
// kill -9, and when it hands over.
//
// The third is the price of the gateway: a volume of the same kind, sync mode always, through the gateway and at the
// primary's own address, by turns (-hop for this alone).
//
// Needed: fio and nbdkit. The processes and files are gone when it ends.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"lockstep/tools/e2e/cluster"
)

// options are the command line.
type options struct {
	seconds   float64
	megabytes int
	failovers int
	dir       string
	binary    string
	json      bool
	hop       bool // only the gateway's hop
}

func main() {
	var o options
	flag.Float64Var(&o.seconds, "seconds", 5, "per cell of the table")
	flag.IntVar(&o.megabytes, "size", 512, "size of the disks in MiB")
	flag.IntVar(&o.failovers, "failovers", 5, "kills of the primary, and handovers, to measure")
	flag.StringVar(&o.dir, "dir", "", "directory on the file system to measure; default $TMPDIR")
	flag.StringVar(&o.binary, "lockstep", "", "binary to measure; default: build it")
	flag.BoolVar(&o.hop, "hop", false, "measure only what the gateway costs")
	flag.BoolVar(&o.json, "json", false, "print JSON in place of Markdown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// report is everything that was measured.
type report struct {
	Machine   machine  `json:"machine"`
	Seconds   float64  `json:"seconds_per_cell"`
	Servers   []server `json:"servers"`
	Pauses    []pauses `json:"pauses"`
	Hops      []hop    `json:"hops"`
	workloads []workload
}

// server is the measurements of one server, in the order of the workloads.
type server struct {
	Name  string `json:"name"`
	Cells []cell `json:"cells"`
}

// run measures everything.
func run(ctx context.Context, o options) (err error) {
	if flag.NArg() > 0 {
		return fmt.Errorf("%q was not expected; see -help", flag.Arg(0))
	}
	tools := []string{"fio", "nbdkit"}
	if o.hop {
		tools = tools[:1]
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed", tool)
		}
	}
	dir, err := os.MkdirTemp(o.dir, "lockstep-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		if o.binary, err = cluster.Build(ctx, dir); err != nil {
			return err
		}
	}
	r := report{Seconds: o.seconds, workloads: workloads}
	if r.Hops, err = measureHop(ctx, o, filepath.Join(dir, "hop")); err != nil {
		return fmt.Errorf("hop: %w", err)
	}
	if o.hop {
		return r.print(o)
	}
	r.Machine = describe(ctx, dir)
	for _, c := range contenders {
		s, err := measure(ctx, o, filepath.Join(dir, "disk"), c, r.workloads)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		r.Servers = append(r.Servers, s)
	}
	if o.failovers > 0 {
		if r.Pauses, err = measurePauses(ctx, o, filepath.Join(dir, "pauses")); err != nil {
			return fmt.Errorf("pauses: %w", err)
		}
	}
	return r.print(o)
}

func (r report) print(o options) error {
	if o.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	if len(r.Servers) > 0 {
		r.markdown(os.Stdout)
	}
	r.hopMarkdown(os.Stdout)
	return nil
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
