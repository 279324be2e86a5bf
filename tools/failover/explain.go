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
var parts = [...]string{"detect", "promote", "open", "reconnect", "replay"}

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
const slack = 20 * time.Millisecond

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// explain takes a pause apart that lasted from..to, around an event that began at a time.
func (m logMarks) explain(p *pause, began, from, to time.Time) error {
	var marks [len(parts)]time.Time // ends of the parts
	first := func(i int, t time.Time) {
		if marks[i].IsZero() || t.Before(marks[i]) {
			marks[i] = t
		}
	}
	for name := range m {
		lines, err := m.since(name)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if l.Time.Before(from) || l.Time.After(to.Add(slack)) {
				continue
			}
			l.Time = minTime(l.Time, to)
			switch role := strings.TrimSuffix(filepath.Base(name), ".log"); {
			case role == "v1" && l.Message == "view":
				first(0, l.Time)
			case role == "gateway" && l.Message == "up":
				marks[3] = l.Time // the last: the probe's, or one as late
			case l.Message == "state" && l.State == "opening":
				first(1, l.Time)
			case l.Message == "state" && l.State == "primary":
				first(2, l.Time)
			}
		}
	}
	marks[4] = to
	at := from
	if began.After(at) {
		at = began
	}
	for i, t := range marks {
		if t.Before(at) {
			if t.IsZero() {
				return nil // the event fell between two writes, or a log line is late
			}
			t = at
		}
		p.parts[i] = t.Sub(at)
		at = t
	}
	p.known = true
	return nil
}
