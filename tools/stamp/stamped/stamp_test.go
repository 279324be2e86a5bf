package stamped

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func TestStampGolden(t *testing.T) {
	b := make([]byte, 48)
	stamp{run: 1, cell: 2, seq: 3, writer: 4}.put(b)
	const want = "7374616d70656431" + "0100000000000000" + "0200000000000000" + "0300000000000000" + "04000000" + "112ef489" + "35b26f023a396231"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzParseNeverMistakesAChangedStamp(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint64(3), uint16(0), byte(0))
	f.Add(uint64(1), uint64(2), uint64(3), uint16(36), byte(1))
	f.Add(uint64(0), uint64(0), uint64(0), uint16(4095), byte(255))
	f.Fuzz(func(t *testing.T, run, cell, seq uint64, at uint16, flip byte) {
		s := stamp{run: run, cell: cell, seq: seq, writer: 9}
		for _, size := range []int{blockBytes, oddBytes} {
			b := make([]byte, size)
			s.put(b)
			whole := bytes.Clone(b)
			b[int(at)%size] ^= flip
			got, v := parse(b)
			if same := bytes.Equal(b, whole); (v == isStamp && got == s) != same {
				t.Fatalf("byte %d changed by %#x: %+v verdict %d", at, flip, got, v)
			}
		}
	})
}

func FuzzParseAnything(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) { parse(b[:min(len(b), blockBytes)]) })
}
