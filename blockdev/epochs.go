package blockdev

import (
	"slices"

	"lockstep/wal"
)

// MaxEpochs is how many epochs an index keeps: the newest.
const MaxEpochs = 64

// EpochStart says that the records from First on, up to the next entry's First, are of Epoch.
type EpochStart struct {
	Epoch wal.Epoch
	First wal.LSN
}

// EpochIndex tells the epoch of each LSN of a log, as far back as it reaches: back to the beginning if its first
// entry starts at LSN 1. Invariant: both Epoch and First ascend.
type EpochIndex []EpochStart

func (x EpochIndex) valid() bool {
	for i, e := range x {
		if e.First == 0 || i > 0 && (e.Epoch <= x[i-1].Epoch || e.First <= x[i-1].First) {
			return false
		}
	}
	return len(x) <= MaxEpochs
}

// At gives the epoch of a record that the log holds or held; false if the index does not reach back to it.
func (x EpochIndex) At(l wal.LSN) (wal.Epoch, bool) {
	i := x.find(l)
	if i < 0 {
		return 0, false
	}
	return x[i].Epoch, true
}

// find is the index of the last entry that starts at or before l, or -1.
func (x EpochIndex) find(l wal.LSN) int {
	i, exact := slices.BinarySearchFunc(x, l, func(e EpochStart, l wal.LSN) int {
		switch {
		case e.First < l:
			return -1
		case e.First > l:
			return 1
		}
		return 0
	})
	if exact {
		return i
	}
	return i - 1
}

// with is the index after records of epoch e from LSN first on were added. It may reuse x's memory.
func (x EpochIndex) with(e wal.Epoch, first wal.LSN) EpochIndex {
	if n := len(x); n > 0 && x[n-1].Epoch == e {
		return x
	}
	if len(x) == MaxEpochs {
		x = slices.Delete(x, 0, 1)
	}
	return append(x, EpochStart{e, first})
}

// upTo is the index of the log that ends at l.
func (x EpochIndex) upTo(l wal.LSN) EpochIndex { return x[:x.find(l)+1] }

// CommonPoint gives the last LSN up to which two logs hold the same records. It builds on two promises of
// replication: one writer per epoch (I3), and equal epochs at an LSN mean equal content there and before (I4). So it is
// the largest LSN within both logs at which both have the same epoch; 0 if a log is empty or all of both can be
// compared and nothing agrees. It is false if an index does not reach back far enough to tell.
func CommonPoint(a EpochIndex, aEnd wal.LSN, b EpochIndex, bEnd wal.LSN) (wal.LSN, bool) {
	l := min(aEnd, bEnd)
	for l > 0 {
		i, j := a.find(l), b.find(l)
		if i < 0 || j < 0 {
			return 0, false
		}
		if a[i].Epoch == b[j].Epoch && a[i].First == b[j].First {
			return l, true
		}
		// Within the shorter of the two stretches nothing agrees: the epochs differ, or one epoch has two
		// beginnings, which I3 rules out and which proves nothing.
		l = max(a[i].First, b[j].First) - 1
	}
	return 0, true
}
