// Command gotally reads the output of one or more runs of `go test -json` on standard input and makes it short: a line
// for each package, the whole output of what failed, the reason of what was skipped. It ends with the names of what failed,
// which may be far above, and the line
//
//	N passed, N failed, N skipped
//
// With -counts these go to a file, for somebody else to end with.
//
// Tests and subtests count alike, as in Go's own events. A package that fails without a failing test (it does not build,
// it panics, it times out) counts as one failure. The exit code is 1 if anything failed, or if nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is what `go test -json` writes; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Elapsed    float64
	Output     string
}

// lineMax bounds a line of input: an event has one line of a test's output.
const lineMax = 4 << 20

func main() {
	counts := flag.String("counts", "", "file to write the end to")
	flag.Parse()
	t := newTally(os.Stdout)
	if err := t.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "gotally:", err)
		os.Exit(1)
	}
	if *counts != "" {
		if err := os.WriteFile(*counts, []byte(t.end()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "gotally:", err)
			os.Exit(1)
		}
	} else {
		fmt.Print(t.end())
	}
	if !t.ok() {
		os.Exit(1)
	}
}

// tally counts results.
type tally struct {
	passed, failed, skipped int
	names                   []string // of what failed

	out    io.Writer
	output map[string][]string // of what still runs, by package and test; build output by import path
	inPkg  map[string]int      // tests that failed, by package
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, output: map[string][]string{}, inPkg: map[string]int{}}
}

func (t *tally) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.passed, t.failed, t.skipped)
}

// end is what there is to say at last.
func (t *tally) end() string {
	var b strings.Builder
	for _, name := range t.names {
		fmt.Fprintf(&b, "failed: %s\n", name)
	}
	fmt.Fprintln(&b, t)
	return b.String()
}

func (t *tally) fail(name string) {
	t.failed++
	t.names = append(t.names, name)
}

// ok: something ran, and nothing failed.
func (t *tally) ok() bool { return t.failed == 0 && t.passed > 0 }

func (t *tally) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, lineMax)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			// Not an event: the go command itself has something to say.
			fmt.Fprintln(t.out, lines.Text())
			continue
		}
		t.add(e)
	}
	return lines.Err()
}

func (t *tally) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		t.output[key] = append(t.output[key], e.Output)
	case "build-output":
		fmt.Fprint(t.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(e, t.output[key])
		} else {
			t.endTest(e, t.output[key])
		}
		delete(t.output, key)
	}
}

func (t *tally) endTest(e event, output []string) {
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.fail(e.Package + " " + e.Test)
		t.inPkg[e.Package]++
		fmt.Fprintf(t.out, "FAIL %s %s (%.1f s)\n", e.Package, e.Test, e.Elapsed)
		t.quote(output)
	case "skip":
		t.skipped++
		fmt.Fprintf(t.out, "skip %s %s\n", e.Package, e.Test)
		t.quote(output)
	}
}

func (t *tally) endPackage(e event, output []string) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(t.out, "ok   %s (%.1f s)\n", e.Package, e.Elapsed)
	case "fail":
		fmt.Fprintf(t.out, "FAIL %s (%.1f s)\n", e.Package, e.Elapsed)
		if t.inPkg[e.Package] == 0 {
			t.fail(e.Package)
		}
		t.quote(output)
		t.quoteUnfinished(e.Package)
	case "skip": // no test files
	}
}

// quoteUnfinished shows what tests said that had no result when their package ended: the one that hung or crashed it.
func (t *tally) quoteUnfinished(pkg string) {
	for key, output := range t.output {
		test, ok := strings.CutPrefix(key, pkg+" ")
		if ok && test != "" {
			fmt.Fprintf(t.out, "     unfinished: %s\n", test)
			t.quote(output)
			delete(t.output, key)
		}
	}
}

func (t *tally) quote(output []string) {
	for _, line := range output {
		if strings.HasPrefix(line, "=== ") {
			continue // progress: the line above says it
		}
		fmt.Fprint(t.out, "     ", line)
	}
}
