package main

import (
	"fmt"
	"slices"
	"syscall"
	"time"
)

// samples are latencies.
type samples []time.Duration

// at is a quantile; the samples are sorted by sort.
func (s samples) at(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func (s samples) sort() samples {
	slices.Sort(s)
	return s
}

func (s samples) String() string {
	return fmt.Sprintf("p50 %v, p99 %v, longest %v", s.at(0.5).Round(time.Microsecond), s.at(0.99).Round(time.Microsecond),
		s.at(1).Round(time.Microsecond))
}

// usage is what this process has used so far.
type usage struct {
	cpu time.Duration
}

func used() usage {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}
	}
	return usage{cpu: time.Duration(r.Utime.Nano() + r.Stime.Nano())}
}

func (u usage) since(v usage) usage { return usage{u.cpu - v.cpu} }
func (u usage) plus(v usage) usage  { return usage{u.cpu + v.cpu} }
