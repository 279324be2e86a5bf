package nbd

import (
	"io"
)

// inbuf is what was read from a peer and not yet used. It is read by one goroutine only.
//
// Invariant: 0 ≤ r ≤ w ≤ len(buf); buf[r:w] is unread.
type inbuf struct {
	src  io.Reader
	buf  []byte
	r, w int
}

// buffered gives what is there without reading; the slice is valid until the next call.
func (b *inbuf) buffered() []byte { return b.buf[b.r:b.w] }

// skip drops n buffered bytes.
func (b *inbuf) skip(n int) {
	b.r += n
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
}

// fill reads once, whatever there is. It returns an error only if it read nothing. want says how many bytes from the
// first unread one must fit; it is at most len(buf).
func (b *inbuf) fill(want int) error {
	n, err := b.src.Read(b.space(want))
	b.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// space is room behind what is unread, where want bytes from the first unread one fit.
func (b *inbuf) space(want int) []byte {
	if b.r+want > len(b.buf) || b.w == len(b.buf) {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	return b.buf[b.w:]
}

// need returns n unread bytes, reading more as often as it takes; n is at most len(buf). An end in the middle is
// io.ErrUnexpectedEOF.
func (b *inbuf) need(n int) ([]byte, error) {
	for b.w-b.r < n {
		if err := b.fill(n); err != nil {
			if err == io.EOF && b.w > b.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return b.buf[b.r : b.r+n], nil
}

// vectorReader is a source that reads into p, and into rest what does not fit there, with one call.
type vectorReader interface {
	readv(p, rest []byte) (int, error)
}

// spillBytes is how much may come behind data that is read directly: the next header, and little of what belongs to
// it, as that is copied.
const spillBytes = 4 << 10

// readFull fills p, from the buffer first and then from the source directly.
func (b *inbuf) readFull(p []byte) error {
	n := copy(p, b.buf[b.r:b.w])
	b.skip(n)
	v, vectors := b.src.(vectorReader)
	for n < len(p) { // the buffer is empty
		var k int
		var err error
		if vectors {
			k, err = v.readv(p[n:], b.buf[:min(spillBytes, len(b.buf))])
		} else {
			k, err = b.src.Read(p[n:])
		}
		b.w = max(0, k-(len(p)-n))
		n += k - b.w
		switch {
		case n == len(p):
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case k == 0:
			return io.ErrNoProgress
		}
	}
	return nil
}

// discard drops n bytes of the stream, at most a buffer at a time.
func (b *inbuf) discard(n uint64) error {
	for n > 0 {
		if b.r == b.w {
			if err := b.fill(1); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		k := min(n, uint64(b.w-b.r))
		b.skip(int(k))
		n -= k
	}
	return nil
}

// resize gives the buffer another size; what is unread must fit.
func (b *inbuf) resize(size int) {
	next := make([]byte, size)
	b.w = copy(next, b.buf[b.r:b.w])
	b.buf, b.r = next, 0
}
