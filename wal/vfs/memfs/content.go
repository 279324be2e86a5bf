package memfs

import (
	"bytes"
	"hash/maphash"
	"maps"
	"sync/atomic"
)

const (
	pageBytes   = 4096
	sectorBytes = 512
	chunkPages  = 64
)

// content is a sparse file's bytes. A clone shares chunks and pages with its origin until one of the two changes them,
// so that a crash test can afford a disk for each of thousands of crashes. What is absent is zero.
type content struct {
	chunks map[int64]*chunk // by offset / (chunkPages * pageBytes)
	owner  *owner           // whoever has another one copies before it changes
	size   int64
}

// owner is an identity; it has a size, so that no two are at the same address.
type owner struct{ _ byte }

type chunk struct {
	owner *owner
	pages [chunkPages]*page
}

// page is bytes of a file. One that nobody owns is part of what a write was given: what is seen, what is on the disk and
// the un-synced change share it, and it never changes.
type page struct {
	owner *owner
	b     *[pageBytes]byte
	print atomic.Uint64 // 0: not computed yet. Clones that share the page may compute it at the same time.
}

var zeroPage [pageBytes]byte

func (c *content) clone() content {
	c.owner = new(owner)
	return content{maps.Clone(c.chunks), new(owner), c.size}
}

// own gives the chunk of a page, to be changed.
func (c *content) own(i int64) *chunk {
	if c.owner == nil {
		c.owner = new(owner)
	}
	ch := c.chunks[i/chunkPages]
	if ch != nil && ch.owner == c.owner {
		return ch
	}
	mine := &chunk{owner: c.owner}
	if ch != nil {
		mine.pages = ch.pages
	}
	if c.chunks == nil {
		c.chunks = map[int64]*chunk{}
	}
	c.chunks[i/chunkPages] = mine
	return mine
}

func (c *content) at(i int64) *page {
	if ch := c.chunks[i/chunkPages]; ch != nil {
		return ch.pages[i%chunkPages]
	}
	return nil
}

// write takes whole pages as they are: b is not to be changed any more.
func (c *content) write(b []byte, off int64) {
	if len(b) == 0 {
		return
	}
	c.size = max(c.size, off+int64(len(b)))
	for len(b) > 0 {
		i, from := off/pageBytes, off%pageBytes
		n := int(min(int64(len(b)), pageBytes-from))
		c.writePage(i, int(from), b[:n])
		b, off = b[n:], off+int64(n)
	}
}

func (c *content) writePage(i int64, from int, b []byte) {
	old := c.at(i)
	zero := bytes.Equal(b, zeroPage[:len(b)])
	if zero && (old == nil || len(b) == pageBytes) {
		if old != nil {
			c.own(i).pages[i%chunkPages] = nil
		}
		return
	}
	ch := c.own(i)
	p := ch.pages[i%chunkPages]
	switch {
	case len(b) == pageBytes:
		ch.pages[i%chunkPages] = &page{b: (*[pageBytes]byte)(b)}
		return
	case p == nil || p.owner != c.owner:
		p = &page{owner: c.owner, b: new([pageBytes]byte)}
		if old != nil {
			*p.b = *old.b
		}
		ch.pages[i%chunkPages] = p
	}
	copy(p.b[from:], b)
	p.print.Store(0)
}

func (c *content) read(b []byte, off int64) int {
	b = b[:max(0, min(int64(len(b)), c.size-off))]
	for n := 0; n < len(b); {
		at := off + int64(n)
		rest := b[n:min(len(b), n+int(pageBytes-at%pageBytes))]
		if p := c.at(at / pageBytes); p != nil {
			copy(rest, p.b[at%pageBytes:])
		} else {
			clear(rest)
		}
		n += len(rest)
	}
	return len(b)
}

// zero makes a range inside the file read as zeroes and drops its whole pages.
func (c *content) zero(off, n int64) {
	end := min(off+n, c.size)
	for off < end {
		step := min(pageBytes-off%pageBytes, end-off)
		if at := off / pageBytes; c.chunks[at/chunkPages] == nil {
			step = min((at/chunkPages+1)*chunkPages*pageBytes, end) - off
		} else {
			c.writePage(at, int(off%pageBytes), zeroPage[:step])
		}
		off += step
	}
}

func (c *content) truncate(size int64) {
	if size < c.size {
		c.zero(size, c.size-size)
	}
	c.size = size
}

var printSeed = maphash.MakeSeed()

// fingerprint is equal for equal contents, and for no others that one meets. Pages know theirs.
func (c *content) fingerprint() uint64 {
	sum := uint64(c.size) * 0x9e3779b97f4a7c15
	for at, ch := range c.chunks {
		for k, p := range ch.pages {
			if p == nil {
				continue
			}
			h := p.print.Load()
			if h == 0 {
				if *p.b != zeroPage {
					h = maphash.Bytes(printSeed, p.b[:])
				}
				h |= 1
				p.print.Store(h)
			}
			if h != 1 { // a page of zeroes may as well be absent
				sum += mix(h, uint64(at*chunkPages+int64(k)))
			}
		}
	}
	return sum
}

// mix is a pair's hash.
func mix(a, b uint64) uint64 {
	a = (a ^ b*0xbf58476d1ce4e5b9) * 0x94d049bb133111eb
	return a ^ a>>31
}
