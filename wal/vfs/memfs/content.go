package memfs

import "maps"

const (
	pageBytes   = 4096
	sectorBytes = 512
)

// content is a sparse file's bytes. Pages are never changed once they are in the map, so a clone shares them.
type content struct {
	pages map[int64]*[pageBytes]byte
	size  int64
}

func (c *content) clone() content { return content{maps.Clone(c.pages), c.size} }

func (c *content) write(b []byte, off int64) {
	if c.pages == nil {
		c.pages = map[int64]*[pageBytes]byte{}
	}
	c.size = max(c.size, off+int64(len(b)))
	for len(b) > 0 {
		page := new([pageBytes]byte)
		if old := c.pages[off/pageBytes]; old != nil {
			*page = *old
		}
		n := copy(page[off%pageBytes:], b)
		c.pages[off/pageBytes] = page
		b, off = b[n:], off+int64(n)
	}
}

func (c *content) read(b []byte, off int64) int {
	b = b[:max(0, min(int64(len(b)), c.size-off))]
	for n := 0; n < len(b); {
		at := off + int64(n)
		rest := b[n:min(len(b), n+int(pageBytes-at%pageBytes))]
		if page := c.pages[at/pageBytes]; page != nil {
			copy(rest, page[at%pageBytes:])
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
		if step == pageBytes {
			delete(c.pages, off/pageBytes)
		} else if c.pages[off/pageBytes] != nil {
			c.write(make([]byte, step), off)
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
