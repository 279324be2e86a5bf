package blockdev

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
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
	pages pageArray[regionPage]
	buf   [pageSize]byte // of write
}

type regionPage struct {
	lsn   [wordsPerPage]atomic.Uint64
	dirty atomic.Bool
}

// regionReadBytes is how much of the file is read at once.
const regionReadBytes = 1 << 20

// openRegions reads the table as it was at a checkpoint, or later.
func openRegions(f vfs.File, volume uint64, at wal.LSN) (*regionTable, error) {
	size := regionsFileSize(volume)
	t := &regionTable{f: newPacedFile(f)}
	t.grow(volume)
	buf := make([]byte, min(size, regionReadBytes))
	for off := int64(0); off < size; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), size-off)]
		if _, err := f.ReadAt(b, off); err != nil {
			return nil, fmt.Errorf("read regions: %w", err)
		}
		for i := range b {
			if i%8 == 0 {
				if word := binary.LittleEndian.Uint64(b[i:]); word != 0 {
					r := int(off+int64(i)) / 8
					l, ok := decodeRegion(r, word)
					if !ok { // rot: nothing that it may have been is newer than the checkpoint
						l = at
					}
					t.page(r / wordsPerPage).lsn[r%wordsPerPage].Store(uint64(l))
				}
			}
		}
	}
	return t, nil
}

// grow makes room for a volume of that size; what is new never changed. Nobody writes or raises meanwhile.
func (t *regionTable) grow(volume uint64) { t.pages.grow(int(regionsFileSize(volume) / pageSize)) }

// The entry of a region in the file. Part of the format.
const (
	regionLSNBits = 48
	maxRegionLSN  = 1<<regionLSNBits - 1 // 44 years at 200 000 records a second; beyond, regions count as changed
)

func encodeRegion(region int, l wal.LSN) uint64 {
	if l == 0 {
		return 0
	}
	l = min(l, maxRegionLSN)
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(region))
	binary.LittleEndian.PutUint64(b[8:], uint64(l))
	return uint64(crc32.Checksum(b[:], castagnoli))<<regionLSNBits | uint64(l)
}

// decodeRegion tells whether an entry is what encodeRegion made.
func decodeRegion(region int, word uint64) (wal.LSN, bool) {
	l := wal.LSN(word & maxRegionLSN)
	return l, encodeRegion(region, l) == word
}

// page makes the page if there is none. Callers are serialised.
func (t *regionTable) page(i int) *regionPage {
	p := t.pages.at(i)
	if p == nil {
		p = new(regionPage)
		t.pages.put(i, p)
	}
	return p
}

func (t *regionTable) get(region int) wal.LSN {
	p := t.pages.at(region / wordsPerPage)
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
	for r, n := max(from, 0), t.pages.len()*wordsPerPage; r < n; r++ {
		p := t.pages.at(r / wordsPerPage)
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
	for i := range t.pages.len() {
		p := t.pages.at(i)
		if p == nil || !p.dirty.Swap(false) {
			continue
		}
		for j := range p.lsn {
			binary.LittleEndian.PutUint64(t.buf[j*8:], encodeRegion(i*wordsPerPage+j, wal.LSN(p.lsn[j].Load())))
		}
		if err := t.f.write(t.buf[:], int64(i)*pageSize); err != nil {
			p.dirty.Store(true)
			return fmt.Errorf("write regions: %w", err)
		}
	}
	return nil
}
