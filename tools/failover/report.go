package main

import (
	"fmt"
	"io"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The histograms' range and precision: microseconds up to goOnLimit, three digits.
const digits = 3

// report is everything that was measured.
type report struct {
	Events []*events  `json:"events"`
	Load   loadReport `json:"load"`
}

// events are the pauses of one kind of event.
type events struct {
	Event string    `json:"event"`
	Times int       `json:"times"`
	Known int       `json:"times_explained"`
	Pause []float64 `json:"pause_ms"` // in order

	whole *hdrhistogram.Histogram
	parts [len(parts)]*hdrhistogram.Histogram
}

func newEvents(name string) *events {
	e := &events{Event: name, whole: newHistogram()}
	for i := range e.parts {
		e.parts[i] = newHistogram()
	}
	return e
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(2*goOnLimit/time.Microsecond), digits)
}

func (e *events) add(p pause) {
	e.Times++
	e.Pause = append(e.Pause, millis(p.whole))
	_ = e.whole.RecordValue(p.whole.Microseconds()) // within goOnLimit, else goesOn failed
	if !p.known {
		return
	}
	e.Known++
	for i, d := range p.parts {
		_ = e.parts[i].RecordValue(d.Microseconds())
	}
}

func percentile(h *hdrhistogram.Histogram, p float64) string {
	return fmt.Sprintf("%.3g", float64(h.ValueAtQuantile(p))/1000)
}

// Markdown prints the report for people.
func (r *report) Markdown(w io.Writer) {
	fmt.Fprint(w, "| event | times | p50 | p99 | longest |\n|---|--:|--:|--:|--:|\n")
	for _, e := range r.Events {
		fmt.Fprintf(w, "| %s | %d | %s ms | %s ms | %s ms |\n", e.Event, e.Times, percentile(e.whole, 50), percentile(e.whole, 99), percentile(e.whole, 100))
	}
	fmt.Fprint(w, "\nWhat a pause consists of, median / 99th percentile in ms:\n\n| event |")
	for _, name := range parts {
		fmt.Fprintf(w, " %s |", name)
	}
	fmt.Fprint(w, "\n|---|")
	for range parts {
		fmt.Fprint(w, "--:|")
	}
	fmt.Fprintln(w)
	for _, e := range r.Events {
		if e.Known == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s |", e.Event)
		for _, h := range e.parts {
			fmt.Fprintf(w, " %s / %s |", percentile(h, 50), percentile(h, 99))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "\nMeanwhile fio made %d writes, the checker %d requests, the probe %d writes: %s.\n",
		r.Load.FioWrites, r.Load.Checked, r.Load.Probed, r.Load.Verdict)
}
