package blockdev

import (
	"errors"
	"io"
	"syscall"
)

// seekData is Linux's SEEK_DATA: the next offset that is not in a hole.
const seekData = 3

// dataFinder tells which stretches of a sparse file may hold data, asked for in ascending order. Where the file
// cannot tell, everything may.
type dataFinder struct {
	f    any
	size int64
	next int64 // where the next data is, or something before it
}

func (d *dataFinder) dataIn(from, to int64) bool {
	if d.next >= to {
		return false
	}
	s, ok := d.f.(io.Seeker)
	if !ok {
		return true
	}
	at, err := s.Seek(max(from, d.next), seekData)
	if err != nil {
		if errors.Is(err, syscall.ENXIO) { // no data from there to the end
			d.next = d.size
			return false
		}
		return true
	}
	d.next = at
	return at < to
}
