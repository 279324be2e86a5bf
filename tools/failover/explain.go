package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// parts are what a pause consists of, in order.
var parts = [...]string{"drain", "decide", "promote", "open", "reconnect", "replay"}

// The facts that end the parts.
const (
	drained = iota
	decided
	promoted
	opened
	attached
)

// pause is one pause.
type pause struct {
	whole time.Duration
	parts [len(parts)]time.Duration
	known bool // the logs had all of it
}

func (p pause) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.1f ms", millis(p.whole))
	if p.known {
		for i, name := range parts {
			fmt.Fprintf(&b, "  %s %.1f", name, millis(p.parts[i]))
		}
	}
	return b.String()
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// logMarks are how long each process's log was.
type logMarks map[string]int64

// mark notes where the logs of a cluster end now.
func mark(dir string) (logMarks, error) {
	names, err := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
	if err != nil {
		return nil, err
	}
	m := logMarks{}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		m[name] = info.Size()
	}
	return m, nil
}

// logLine is what matters of a line of a process's log.
type logLine struct {
	Time    time.Time `json:"time"`
	Message string    `json:"message"`
	State   string    `json:"state"`
	View    uint64    `json:"view"`
}

// since reads the lines that a process has logged since the mark.
func (m logMarks) since(name string) ([]logLine, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var lines []logLine
	for text := range bytes.Lines(b[min(m[name], int64(len(b))):]) {
		var line logLine
		if json.Unmarshal(text, &line) == nil { // the last one may be half written
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// slack is how much later than the fact a line may be logged.
const slack = 5 * time.Millisecond

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// facts are when things happened, by the logs; the ends of all parts but the last.
type facts [len(parts) - 1]time.Time

// after finds what has happened since a time.
func (m logMarks) after(began time.Time) (facts, error) {
	var f facts
	first := func(i int, t time.Time) {
		if f[i].IsZero() || t.Before(f[i]) {
			f[i] = t
		}
	}
	for name := range m {
		lines, err := m.since(name)
		if err != nil {
			return f, err
		}
		for _, l := range lines {
			if l.Time.Before(began) {
				continue
			}
			switch role := strings.TrimSuffix(filepath.Base(name), ".log"); {
			case l.Message == "propose":
				first(drained, l.Time)
			case role == "v1" && l.Message == "view":
				first(decided, l.Time)
			case l.Message == "state" && l.State == "opening":
				first(promoted, l.Time)
			case l.Message == "state" && l.State == "primary":
				first(opened, l.Time)
			case role == "gateway" && l.Message == "up":
				first(attached, l.Time)
			}
		}
	}
	if f[drained].IsZero() || f[decided].Before(f[drained]) {
		f[drained] = began // nobody proposed this view: the service made it
	}
	return f, nil
}

// explain finds the pause around an event that began at a time, and takes it apart.
func (m logMarks) explain(began time.Time, gaps []gap) (pause, error) {
	f, err := m.after(began)
	if err != nil {
		return pause{}, err
	}
	// No write is acknowledged from when the old primary is drained, or dead, until the new one serves. What came before
	// the view was made, such as a sync that took long while the order was on its way, is no part of that.
	from := began
	if !f[decided].IsZero() {
		from = f[decided]
	}
	var g gap
	for _, x := range gaps {
		if !f[attached].IsZero() && x.from.After(f[attached]) {
			break // the new primary serves: what comes is no part of this
		}
		if x.to.After(from) && x.length() > g.length() {
			g = x
		}
	}
	p := pause{whole: g.length()}
	at := g.from
	if began.After(at) {
		at = began
	}
	for i, t := range append(f[:], g.to) {
		// The log's time is a little later than the fact: the write may be acknowledged before the line is written.
		if t.IsZero() || t.Before(g.from) && i > drained || t.After(g.to.Add(slack)) {
			return p, nil // this gap was before the view
		}
		t = minTime(t, g.to)
		p.parts[i] = max(t.Sub(at), 0)
		if t.After(at) {
			at = t
		}
	}
	p.known = true
	return p, nil
}
