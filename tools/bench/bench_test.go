package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestFioOutputIsUnderstood(t *testing.T) {
	const side = `{"iops": 100.5, "bw_bytes": 411648, "total_ios": 7, "clat_ns": {"percentile": {"50.000000": 1500, "99.000000": 2000000}}}`
	for _, out := range []string{
		"fio: connected to NBD server\n" + `{"jobs": [{"error": 0, "read": {}, "write": ` + side + `}]}`,
		`{"jobs": [{"error": 0, "write": {}, "read": ` + side + `}]}`,
	} {
		c, err := parseFio([]byte(out))
		if err != nil || c != (cell{IOPS: 100.5, MBps: 0.411648, P50: 1.5, P99: 2000}) {
			t.Errorf("got %+v, %v from %s", c, err, out)
		}
	}
	for _, out := range []string{``, `{}`, `{"jobs": [{"error": 5, "write": ` + side + `}]}`, `{"jobs": [{"read": {}, "write": {}}]}`} {
		if c, err := parseFio([]byte(out)); err == nil {
			t.Errorf("got %+v from %q, want an error", c, out)
		}
	}
}

func TestTableComparesPairs(t *testing.T) {
	r := report{workloads: workloads[:1]}
	for i, c := range contenders {
		r.Servers = append(r.Servers, server{c.name, []cell{{IOPS: float64(100 * (i + 1)), P50: 999, P99: 12_345}}})
	}
	var b strings.Builder
	r.Markdown(&b)
	for _, want := range []string{
		"| 4 KiB random write, QD 1 | 100/s, 999 µs / 12 ms | 200/s, 999 µs / 12 ms | 0.50 | 300/s, 999 µs / 12 ms | 400/s, 999 µs / 12 ms | 0.75 |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks\n%s\nin\n%s", want, &b)
		}
	}
}

func TestHopIsShownAsARatio(t *testing.T) {
	slow, fast := cell{IOPS: 80, P50: 1, P99: 2}, cell{IOPS: 100, P50: 1, P99: 2}
	if got := middle([]cell{fast, slow, {IOPS: 90}}); got.IOPS != 90 {
		t.Errorf("the middle one is %+v", got)
	}
	r := report{Hops: []hop{{Workload: "4 KiB random write, QD 32", Through: slow, Direct: fast, Ratio: 0.8, CPU: 4.44}}}
	var b strings.Builder
	r.hopMarkdown(&b)
	if want := "| 4 KiB random write, QD 32 | 80/s, 1 µs / 2 µs | 100/s, 1 µs / 2 µs | 0.80 | 4.4 µs |"; !strings.Contains(b.String(), want) {
		t.Errorf("the report lacks\n%s\nin\n%s", want, &b)
	}
}

func TestProcessorTimeOfAProcessGrows(t *testing.T) {
	before, err := cpuSeconds(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for { // until some is used; the test's own timeout is the guard
		now, err := cpuSeconds(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
	}
}

// The peers can be measured, and forcing writes to stable storage shows.
func TestPeersAreMeasured(t *testing.T) {
	for _, tool := range []string{"fio", "nbdkit"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not installed")
		}
	}
	o := options{seconds: 0.2, megabytes: 16}
	var writes []float64
	for _, i := range []int{1, 3} {
		s, err := measure(t.Context(), o, filepath.Join(t.TempDir(), "disk"), contenders[i], workloads[:1])
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", s)
		writes = append(writes, s.Cells[0].IOPS)
	}
	if writes[0] >= writes[1] {
		t.Errorf("durable writes at %.0f/s, from memory at %.0f/s: the former do not reach the disk", writes[0], writes[1])
	}
}
