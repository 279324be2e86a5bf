package main

import (
	"fmt"
	"io"
)

// Markdown prints the report for people.
func (r report) Markdown(w io.Writer) {
	if len(r.Servers) > 0 {
		r.serversMarkdown(w)
	}
	r.hopMarkdown(w)
}

// serversMarkdown prints the servers beside each other.
func (r report) serversMarkdown(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "%s, %d cores, %s, %s; %s, %s; %g s per cell.\n\n", m.CPU, m.Cores, m.Kernel, m.FileSystem, m.Fio, m.Nbdkit, r.Seconds)
	fmt.Fprint(w, `Lockstep: gateway, primary and backup on this machine, two copies. nbdkit: one process, one copy.
"always" and "durable" acknowledge a write when it is on stable storage; "flush" and "page cache" when it is in
memory, so a power failure loses what was not flushed. Compare within these pairs. A cell is requests per second
or MB/s, then the completion latency, median / 99th percentile.

`)
	fmt.Fprint(w, "| workload |")
	for _, p := range pairs {
		fmt.Fprintf(w, " %s | %s | ratio |", r.Servers[p[0]].Name, r.Servers[p[1]].Name)
	}
	fmt.Fprint(w, "\n|---|")
	for range pairs {
		fmt.Fprint(w, "--:|--:|--:|")
	}
	fmt.Fprintln(w)
	for i, load := range r.workloads {
		fmt.Fprintf(w, "| %s |", load.name)
		for _, p := range pairs {
			a, b := r.Servers[p[0]].Cells[i], r.Servers[p[1]].Cells[i]
			fmt.Fprintf(w, " %s | %s | %.2f |", load.show(a), load.show(b), a.IOPS/b.IOPS)
		}
		fmt.Fprintln(w)
	}
}

// hopMarkdown prints what the gateway costs.
func (r report) hopMarkdown(w io.Writer) {
	fmt.Fprintf(w, "\nThrough the gateway and at the primary's own address, %d times by turns, the medians of each and of each round's ratio:\n\n", hopRounds)
	fmt.Fprint(w, "| workload | through the gateway | direct | ratio | CPU of the gateway |\n|---|--:|--:|--:|--:|\n")
	for i, h := range r.Hops {
		fmt.Fprintf(w, "| %s | %s | %s | %.2f | %.1f µs |\n", h.Workload, hopLoads[i].show(h.Through), hopLoads[i].show(h.Direct), h.Ratio, h.CPU)
	}
}

// show is a cell as text.
func (l workload) show(c cell) string {
	figure := fmt.Sprintf("%.0f/s", c.IOPS)
	if l.bulk {
		figure = fmt.Sprintf("%.0f MB/s", c.MBps)
	}
	return fmt.Sprintf("%s, %s / %s", figure, duration(c.P50), duration(c.P99))
}

// duration shows microseconds with three digits.
func duration(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.0f µs", us)
	case us < 10_000:
		return fmt.Sprintf("%.2f ms", us/1000)
	}
	return fmt.Sprintf("%.0f ms", us/1000)
}
