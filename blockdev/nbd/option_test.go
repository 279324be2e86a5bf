package nbd

import (
	"bytes"
	"errors"
	"testing"
)

// What decodes encodes to the same bytes, and what does not is called malformed.
func FuzzInfoRequest(f *testing.F) {
	f.Add(encodeInfoRequest(infoRequest{name: "vol0", want: []uint16{0, 3}}))
	f.Add(encodeInfoRequest(infoRequest{}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeInfoRequest(p)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := encodeInfoRequest(r); !bytes.Equal(again, p) {
			t.Fatalf("%x became %x", p, again)
		}
	})
}

// The same for the data of the options on metadata contexts; and what a client asks for selects what it means.
func FuzzMetaRequest(f *testing.F) {
	f.Add(encodeMetaRequest(metaRequest{name: "vol0", queries: []string{"base:allocation", "base:", ""}}))
	f.Add(encodeMetaRequest(metaRequest{}))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeMetaRequest(p)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := encodeMetaRequest(r); !bytes.Equal(again, p) {
			t.Fatalf("%x became %x", p, again)
		}
		if r.selectsAllocation(optSetMetaContext) && !r.selectsAllocation(optListMetaContext) {
			t.Fatalf("%q selects what it does not list", r.queries)
		}
	})
}

// A size class holds what it is asked for, and no more than twice that above the smallest.
func TestBufferClassesFit(t *testing.T) {
	var pool buffers
	for _, n := range []int{1, 4095, 4096, 4097, 8192, 8193, 1<<20 - 1, 1 << 20, 1<<20 + 1, maxPayloadBytes} {
		b := pool.get(n)
		if len(b.bytes) < n || len(b.bytes) > max(2*n-1, 4096) {
			t.Errorf("%d bytes asked, %d given", n, len(b.bytes))
		}
		pool.put(b)
	}
}
