// Command walbench measures one replica's storage, without network and protocol, beside what fio reaches on the same
// file system in the same run. Its figures are ratios to fio, to the same thing without the applier, and to the bytes
// that the user wrote.
//
//	go run ./tools/walbench                        everything, some 40 seconds
//	go run ./tools/walbench -only applier -log 1G  one part; the parts are commit, applier, large, read, open
//
// commit is group commit by one committer, append and sync, for several sizes of a frame. Its peer is fio's psync
// engine, which writes as many bytes to a file that was written before, and calls fdatasync after each. applier is
// durable frames of 4 KiB writes to random places, first with nobody applying, then as fast as the store takes them:
// the latency of a frame beside applier and checkpoints, how long back-pressure held it up, and how many bytes went to the
// disk for each byte of the user's. large is the same with writes of 1 MiB. read is verified 4 KiB reads out of the page
// cache on all cores. open is a volume of 1 TiB: what it takes on disk and in memory, and how long a log that is full takes to
// recover.
//
// CPU is that of this process, in user and kernel mode, without what the kernel's own threads do for it.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// options are the command line.
type options struct {
	dir     string
	seconds float64
	only    string
	log     int64 // MiB
	volume  int64 // MiB
	writes  int
}

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", os.TempDir(), "directory on the file system to measure")
	flag.Float64Var(&o.seconds, "seconds", 4, "per measurement")
	flag.StringVar(&o.only, "only", "", "parts to measure, separated by commas; default all")
	flag.Int64Var(&o.log, "log", 512, "size of the log in MiB")
	flag.Int64Var(&o.volume, "volume", 1024, "size of the volume in MiB")
	flag.IntVar(&o.writes, "writes", 32, "writes of 4 KiB in a frame, for part applier")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "walbench: %v\n", err)
		os.Exit(1)
	}
}

var parts = []struct {
	name    string
	measure func(options) error
}{
	{"commit", commit},
	{"applier", applier},
	{"large", large},
	{"read", read},
	{"open", opening},
}

func run(o options) (err error) {
	if o.dir, err = os.MkdirTemp(o.dir, "walbench"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	var names, only []string
	if o.only != "" {
		only = strings.Split(o.only, ",")
	}
	for _, p := range parts {
		names = append(names, p.name)
		if o.only != "" && !slices.Contains(only, p.name) {
			continue
		}
		fmt.Printf("\n## %s\n\n", p.name)
		if err := p.measure(o); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, n := range only {
		if !slices.Contains(names, n) {
			return fmt.Errorf("no part %q: choose of %s", n, strings.Join(names, ", "))
		}
	}
	return nil
}

func (o options) duration() time.Duration { return time.Duration(o.seconds * float64(time.Second)) }
