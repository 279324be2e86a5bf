package blockdev

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// What data.crc has for a block without content, which is below every wal.BlockSum. Part of the format.
const (
	sumHole uint32 = 0 // zeroes that take no space: never written, or given back
	sumKept uint32 = 1 // zeroes whose space was to stay allocated
)

// HasData tells from a block's sum whether it has content. A block without reads as zeroes.
func HasData(sum uint32) bool { return sum >= wal.MinBlockSum }

// zeroSum is the sum of the blocks that a ZERO or TRIM leaves.
func zeroSum(r wal.Record) uint32 {
	if r.Kind == wal.KindZero && r.Flags&wal.RecordNoHole != 0 {
		return sumKept
	}
	return sumHole
}

const (
	sumsPerPage  = pageSize / 4
	wordsPerPage = pageSize / 8
	pageSize     = 4096
	// maxSumPages is how many pages of data.crc stay in memory: 32 MiB, the sums of 32 GiB of volume.
	maxSumPages = 8192
)

func sumsFileSize(volume uint64) int64 {
	return int64((volume/BlockSize+sumsPerPage-1)/sumsPerPage) * pageSize
}

// sumTable is data.crc with a cache of its pages. Readers take no lock for a page that is loaded. One goroutine
// at a time changes sums (B6).
//
// Pages may reach the disk at any time: whatever differs from the last checkpoint is still in the log. Dirty
// pages are written, not synced, when there are too many, and by each checkpoint.
type sumTable struct {
	f     *pacedFile
	limit int
	pages pageArray[sumPage]
	// check looks at a page that was read from the file, before anybody uses it.
	check func(page int, p *sumPage) error

	mu       sync.Mutex // guards everything below, and the dirty flags
	resident []int      // indexes of loaded pages, in no order
	dirty    []int
	hand     int    // of the clock that picks a page to drop
	drops    uint64 // how often a page was dropped
	buf      [pageSize]byte
}

// sumPage holds two sums per word, the even block's in the lower half, so that readers can load a sum while its
// neighbour is changed.
type sumPage struct {
	words [wordsPerPage]atomic.Uint64
	used  atomic.Bool // since the clock's hand came by
	dirty bool        // guarded by sumTable.mu; a dirty page is not dropped
}

func (p *sumPage) get(i uint64) uint32 { return uint32(p.words[i/2].Load() >> (i % 2 * 32)) }

func (p *sumPage) set(i uint64, sum uint32) {
	w := &p.words[i/2]
	shift := i % 2 * 32
	w.Store(w.Load()&^(0xffffffff<<shift) | uint64(sum)<<shift)
}

func newSumTable(f vfs.File, volume uint64) *sumTable {
	t := &sumTable{f: newPacedFile(f), limit: maxSumPages}
	t.grow(volume)
	return t
}

// grow makes room for a volume of that size; the sums of what is new are 0.
func (t *sumTable) grow(volume uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pages.grow(int(sumsFileSize(volume) / pageSize))
}

// get fills dst with the sums of the blocks from block on.
func (t *sumTable) get(block uint64, dst []uint32) error {
	for len(dst) > 0 {
		p, err := t.page(int(block / sumsPerPage))
		if err != nil {
			return err
		}
		at := block % sumsPerPage
		n := min(len(dst), int(sumsPerPage-at))
		for i := range n {
			dst[i] = p.get(at + uint64(i))
		}
		block += uint64(n)
		dst = dst[n:]
	}
	return nil
}

// cached is get for pages that are loaded; false if one is not.
func (t *sumTable) cached(block uint64, dst []uint32) bool {
	for first, last := int(block/sumsPerPage), int((block+uint64(len(dst))-1)/sumsPerPage); first <= last; first++ {
		if t.pages.at(first) == nil {
			return false
		}
	}
	return t.get(block, dst) == nil // a page that was dropped just now is read again: rare enough
}

// page returns a page that may be dropped while the caller reads it: it then sees the sums as they were.
func (t *sumTable) page(i int) (*sumPage, error) {
	if p := t.pages.at(i); p != nil {
		if !p.used.Load() {
			p.used.Store(true)
		}
		return p, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loadLocked(i)
}

// loadLocked reads the page without the lock, which it gives up meanwhile.
func (t *sumTable) loadLocked(i int) (*sumPage, error) {
	for {
		if p := t.pages.at(i); p != nil {
			return p, nil
		}
		drops := t.drops
		t.mu.Unlock()
		p := new(sumPage)
		b := pageBuffers.Get().(*[pageSize]byte)
		_, err := t.f.ReadAt(b[:], int64(i)*pageSize)
		for j := range p.words {
			p.words[j].Store(binary.LittleEndian.Uint64(b[j*8:]))
		}
		pageBuffers.Put(b)
		if err == nil && t.check != nil {
			err = t.check(i, p)
		}
		t.mu.Lock()
		if err != nil {
			return nil, fmt.Errorf("read checksums: %w", err)
		}
		if t.pages.at(i) == nil && t.drops == drops {
			t.makeRoomLocked()
			t.resident = append(t.resident, i)
			t.pages.put(i, p)
		}
		// Otherwise somebody may have loaded, changed, written and dropped the page since it was read.
	}
}

// pageBuffers are for reading pages, which need not be fast.
var pageBuffers = sync.Pool{New: func() any { return new([pageSize]byte) }}

// makeRoomLocked drops a clean page that was not used lately, if the limit is reached and there is one.
func (t *sumTable) makeRoomLocked() {
	for range 2 * len(t.resident) {
		if len(t.resident) < t.limit {
			return
		}
		t.hand = (t.hand + 1) % len(t.resident)
		i := t.resident[t.hand]
		p := t.pages.at(i)
		if p.dirty || p.used.Swap(false) {
			continue
		}
		t.dropLocked(t.hand)
	}
}

func (t *sumTable) dropLocked(at int) {
	t.pages.put(t.resident[at], nil)
	t.resident[at] = t.resident[len(t.resident)-1]
	t.resident = t.resident[:len(t.resident)-1]
	t.drops++
}

func (t *sumTable) dropCount() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.drops
}

// set changes one sum.
func (t *sumTable) set(block uint64, sum uint32) error {
	p, err := t.pageForWrite(int(block / sumsPerPage))
	if err != nil {
		return err
	}
	p.set(block%sumsPerPage, sum)
	return nil
}

// pageForWrite returns a page that stays until it is written back.
func (t *sumTable) pageForWrite(i int) (*sumPage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.loadLocked(i)
	if err != nil {
		return nil, err
	}
	if !p.dirty {
		if len(t.dirty) >= t.limit/2 {
			if err := t.writeLocked(); err != nil {
				return nil, err
			}
		}
		p.dirty = true
		t.dirty = append(t.dirty, i)
	}
	return p, nil
}

// fill sets all sums of a range. For holes whole pages are punched out of the file, so that a huge range is cheap.
func (t *sumTable) fill(block, count uint64, sum uint32) error {
	from, to := (block+sumsPerPage-1)/sumsPerPage, (block+count)/sumsPerPage
	if sum != sumHole {
		to = from
	}
	for b := block; b < block+count; b++ {
		if from < to && b == from*sumsPerPage {
			b = to * sumsPerPage
			if b == block+count {
				break
			}
		}
		if err := t.set(b, sum); err != nil {
			return err
		}
	}
	if from >= to {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	within := func(i int) bool { return uint64(i) >= from && uint64(i) < to }
	t.dirty = slices.DeleteFunc(t.dirty, within)
	for at := 0; at < len(t.resident); {
		if within(t.resident[at]) {
			t.dropLocked(at)
		} else {
			at++
		}
	}
	t.drops++ // also for pages being loaded just now
	if err := t.f.PunchHole(int64(from)*pageSize, int64(to-from)*pageSize); err != nil {
		return fmt.Errorf("punch checksums: %w", noSpace(err))
	}
	return nil
}

// write brings all dirty pages to the file. Nobody changes sums meanwhile.
func (t *sumTable) write() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writeLocked()
}

func (t *sumTable) writeLocked() error {
	slices.Sort(t.dirty)
	for k, i := range t.dirty {
		p := t.pages.at(i)
		for j := range p.words {
			binary.LittleEndian.PutUint64(t.buf[j*8:], p.words[j].Load())
		}
		if err := t.f.write(t.buf[:], int64(i)*pageSize); err != nil {
			t.dirty = slices.Delete(t.dirty, 0, k) // the others may be written again
			return fmt.Errorf("write checksums: %w", err)
		}
		p.dirty = false
	}
	t.dirty = t.dirty[:0]
	return nil
}
