package blockdev

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// RegionBytes is the unit in which replicas find out what differs, and copy it. Part of the format.
const RegionBytes = 1 << 20

// RegionBlocks is the number of blocks in a region; the last one of a volume may be shorter.
const RegionBlocks = RegionBytes / BlockSize

func regionCount(volume uint64) int { return int((volume + RegionBytes - 1) / RegionBytes) }

func regionsFileSize(volume uint64) int64 {
	return int64((regionCount(volume)+wordsPerPage-1)/wordsPerPage) * pageSize
}

// regionTable is the regions file, wholly in memory but for pages that are all zero: 8 MiB for a TiB that was
// written everywhere. Commit raises entries, under Store.mu; anybody reads them.
type regionTable struct {
	f     *pacedFile
	n     int // regions
	pages []atomic.Pointer[regionPage]
	buf   [pageSize]byte // of write
}

type regionPage struct {
	lsn   [wordsPerPage]atomic.Uint64
	dirty atomic.Bool
}

// regionReadBytes is how much of the file is read at once.
const regionReadBytes = 1 << 20

func openRegions(f vfs.File, volume uint64) (*regionTable, error) {
	size := regionsFileSize(volume)
	t := &regionTable{f: newPacedFile(f), n: regionCount(volume), pages: make([]atomic.Pointer[regionPage], size/pageSize)}
	buf := make([]byte, min(size, regionReadBytes))
	for off := int64(0); off < size; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), size-off)]
		if _, err := f.ReadAt(b, off); err != nil {
			return nil, fmt.Errorf("read regions: %w", err)
		}
		for i := range b {
			if i%8 == 0 {
				if l := binary.LittleEndian.Uint64(b[i:]); l != 0 {
					w := int(off+int64(i)) / 8
					t.page(w / wordsPerPage).lsn[w%wordsPerPage].Store(l)
				}
			}
		}
	}
	return t, nil
}

// page makes the page if there is none. Callers are serialised.
func (t *regionTable) page(i int) *regionPage {
	p := t.pages[i].Load()
	if p == nil {
		p = new(regionPage)
		t.pages[i].Store(p)
	}
	return p
}

func (t *regionTable) get(region int) wal.LSN {
	p := t.pages[region/wordsPerPage].Load()
	if p == nil {
		return 0
	}
	return wal.LSN(p.lsn[region%wordsPerPage].Load())
}

// raise notes a change of a range of blocks by the record l (B5). Callers are serialised.
func (t *regionTable) raise(block, count uint64, l wal.LSN) {
	for r := int(block / RegionBlocks); r <= int((block+count-1)/RegionBlocks); r++ {
		p := t.page(r / wordsPerPage)
		if w := &p.lsn[r%wordsPerPage]; w.Load() < uint64(l) {
			w.Store(uint64(l))
			p.dirty.Store(true) // after the value: write either sees the value or finds the page dirty again
		}
	}
}

// newer finds the first region from the given one on that changed after l.
func (t *regionTable) newer(l wal.LSN, from int) (int, bool) {
	for r := max(from, 0); r < t.n; r++ {
		p := t.pages[r/wordsPerPage].Load()
		if p == nil {
			r |= wordsPerPage - 1 // the last one of this page
			continue
		}
		if p.lsn[r%wordsPerPage].Load() > uint64(l) {
			return r, true
		}
	}
	return 0, false
}

// write brings changed pages to the file, not to stable storage. Only one goroutine writes (B6).
func (t *regionTable) write() error {
	for i := range t.pages {
		p := t.pages[i].Load()
		if p == nil || !p.dirty.Swap(false) {
			continue
		}
		for j := range p.lsn {
			binary.LittleEndian.PutUint64(t.buf[j*8:], p.lsn[j].Load())
		}
		if err := t.f.write(t.buf[:], int64(i)*pageSize); err != nil {
			return fmt.Errorf("write regions: %w", err)
		}
	}
	return nil
}
