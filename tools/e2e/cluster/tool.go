package cluster

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// Tool is what the commands that measure clusters have in common: some flags, a directory that is gone afterwards, a
// binary to measure, and a report for people or programs.
type Tool struct {
	Name   string
	Dir    string // on the file system to measure; "" is $TMPDIR
	Binary string // "" until Main has built it, if it was not given
	JSON   bool
}

// Report is what was measured. Its JSON is that of its exported fields.
type Report interface {
	Markdown(w io.Writer)
}

// Flags adds -dir, -lockstep and -json to the command line.
func (t *Tool) Flags() {
	flag.StringVar(&t.Dir, "dir", "", "directory on the file system to measure; default $TMPDIR")
	flag.StringVar(&t.Binary, "lockstep", "", "binary to measure; default: build it")
	flag.BoolVar(&t.JSON, "json", false, "print JSON in place of Markdown")
}

// Main measures and prints the report, until SIGINT or SIGTERM; then it ends the process. needs are programs that have to
// be installed. The command line was parsed; measure gets a directory of its own.
func (t *Tool) Main(needs []string, measure func(ctx context.Context, dir string) (Report, error)) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := t.run(ctx, needs, measure)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", t.Name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (t *Tool) run(ctx context.Context, needs []string, measure func(ctx context.Context, dir string) (Report, error)) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("%q was not expected; see -help", flag.Arg(0))
	}
	for _, program := range needs {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed", program)
		}
	}
	dir, err := os.MkdirTemp(t.Dir, "lockstep-"+t.Name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if t.Binary == "" {
		if t.Binary, err = Build(ctx, dir); err != nil {
			return err
		}
	}
	r, err := measure(ctx, dir)
	if err != nil {
		return err
	}
	if t.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	r.Markdown(os.Stdout)
	return nil
}
