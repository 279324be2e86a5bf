package nbd

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"
)

// vectors is a source that can read into two places at once.
type vectors struct{ io.Reader }

func (v vectors) readv(p, rest []byte) (int, error) {
	both := make([]byte, len(p)+len(rest))
	n, err := v.Read(both)
	copy(rest, both[copy(p, both[:n]):n])
	return n, err
}

// Whatever the sizes of reads and of what is taken, the stream comes out as it went in.
func TestInbufKeepsTheStream(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	stream := make([]byte, 1<<20)
	for i := range stream {
		stream[i] = byte(rnd.Uint32())
	}
	const size = 4096
	for name, src := range map[string]io.Reader{
		"whole reads": bytes.NewReader(stream),
		"half reads":  iotest.HalfReader(bytes.NewReader(stream)),
		"bytes":       iotest.OneByteReader(bytes.NewReader(stream)),
		"vectors":     vectors{bytes.NewReader(stream)},
	} {
		b := &inbuf{src: src, buf: make([]byte, size)}
		at := 0
		check := func(got []byte) {
			t.Helper()
			if !bytes.Equal(got, stream[at:at+len(got)]) {
				t.Fatalf("%s: %d bytes at %d differ", name, len(got), at)
			}
			at += len(got)
		}
		for len(stream)-at > 3*size {
			switch rnd.IntN(4) {
			case 0:
				p, err := b.need(1 + rnd.IntN(size))
				if err != nil {
					t.Fatal(err)
				}
				check(p)
				b.skip(len(p))
			case 1:
				p := make([]byte, rnd.IntN(2*size))
				if err := b.readFull(p); err != nil {
					t.Fatal(err)
				}
				check(p)
			case 2:
				n := rnd.IntN(2 * size)
				if err := b.discard(uint64(n)); err != nil {
					t.Fatal(err)
				}
				at += n
			case 3:
				k := rnd.IntN(len(b.buffered()) + 1)
				check(b.buffered()[:k])
				b.skip(k)
			}
		}
		rest, err := io.ReadAll(io.MultiReader(bytes.NewReader(b.buffered()), src))
		if err != nil || !bytes.Equal(rest, stream[at:]) {
			t.Fatalf("%s: the rest differs (%v)", name, err)
		}
	}
}

// An end between two things is io.EOF, one within a thing is not.
func TestInbufTellsWhereTheStreamEnded(t *testing.T) {
	b := &inbuf{src: bytes.NewReader([]byte("abc")), buf: make([]byte, 16)}
	if _, err := b.need(4); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if err := b.discard(4); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if _, err := b.need(4); err != io.EOF {
		t.Error(err)
	}
}
