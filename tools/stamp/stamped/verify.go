package stamped

import "fmt"

// verifyBytes is the length of the reads that Verify and Clear go through the area with.
const verifyBytes = 1 << 20

// Clear zeroes the area, as a ledger supposes it to be at the beginning.
func Clear(d Disk, l Layout) error {
	for off := uint64(0); off < l.Bytes(); off += verifyBytes {
		n := min(verifyBytes, l.Bytes()-off)
		if err := d.ZeroAt(l.Base+off, int(n), false); err != nil {
			return fmt.Errorf("stamped: zero %d bytes at %d: %w", n, l.Base+off, err)
		}
	}
	return nil
}

// Verify reads everything and checks it against the ledger while nothing is in flight (S1 to S6). The error is a
// *Violation if the disk lost something.
func Verify(d Disk, l *Ledger) error {
	all := make([]content, 0, l.layout.Cells())
	buf := make([]byte, verifyBytes)
	var r Read
	for first := 0; first < l.layout.Cells(); {
		n := l.layout.clip(first, verifyBytes/blockBytes)
		off, length := l.layout.extent(first, n)
		l.BeginRead(&r, first, n)
		if err := d.ReadAt(buf[:length], off); err != nil {
			return fmt.Errorf("stamped: verify: read %d bytes at %d: %w", length, off, err)
		}
		if err := l.EndRead(&r, buf[:length]); err != nil {
			return err
		}
		all = append(all, r.found...)
		first += n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.halfWriteLocked(all)
}
