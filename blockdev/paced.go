package blockdev

import "lockstep/wal/vfs"

// The disk serves the log's writes, for which clients wait, beside those of the applier, for which nobody does. A write
// of the log waits for what was queued before it. So the applier never has more in the device's queue than
// paceWrites scattered writes or paceBytes: enough to keep a disk busy, little enough not to be noticed; and a checkpoint,
// whose syncs wait for all that is dirty, finds next to nothing.
const (
	paceWrites = 32
	paceBytes  = 512 << 10
)

// pacedFile is a data file that is written in bursts: while the device works on one the next is prepared, and it is not
// handed over before the device is done. One goroutine at a time writes (B6).
type pacedFile struct {
	vfs.File
	cleaner vfs.Cleaner // nil if the file cannot: then there is only a hint

	writes, bytes int // of the burst in the making
	lo, hi        int64
	// what the device works on
	sentLo, sentHi int64
}

func newPacedFile(f vfs.File) *pacedFile {
	c, _ := f.(vfs.Cleaner)
	return &pacedFile{File: f, cleaner: c}
}

// write is WriteAt at a pace.
func (p *pacedFile) write(b []byte, off int64) error {
	for len(b) > 0 {
		n := min(len(b), paceBytes)
		if _, err := p.WriteAt(b[:n], off); err != nil {
			return noSpace(err)
		}
		if p.writes == 0 {
			p.lo, p.hi = off, off
		}
		p.lo, p.hi = min(p.lo, off), max(p.hi, off+int64(n))
		p.bytes += n
		if p.writes++; p.writes >= paceWrites || p.bytes >= paceBytes {
			if err := p.send(); err != nil {
				return err
			}
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// send gives the burst to the device, once it is done with the one before.
func (p *pacedFile) send() error {
	if p.writes == 0 {
		return nil
	}
	if p.cleaner == nil {
		p.StartWriteback(p.lo, p.hi-p.lo)
	} else {
		if p.sentHi > p.sentLo {
			if err := p.cleaner.CleanWait(p.sentLo, p.sentHi-p.sentLo); err != nil {
				return err
			}
		}
		if err := p.cleaner.CleanStart(p.lo, p.hi-p.lo); err != nil {
			return err
		}
	}
	p.sentLo, p.sentHi = p.lo, p.hi
	p.writes, p.bytes = 0, 0
	return nil
}

// sync makes the file stable.
func (p *pacedFile) sync() error {
	p.writes, p.bytes, p.sentLo, p.sentHi = 0, 0, 0, 0
	return p.Sync()
}
