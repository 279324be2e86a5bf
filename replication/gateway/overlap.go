package gateway

import "math"

// The index of overlaps answers "which ranges in flight overlap this one?" in time that does not grow with the
// number in flight, for the requests that matter: small ones. The disk is cut into chunks, chunks are hashed to
// buckets, and a bucket is a chain of the ranges that touch one of its chunks.
//
// A range of up to two chunks, *narrow*, is in one or two chains. A longer one, *wide*, is in none but in a list of
// its own that everybody compares with: its payload costs far more than that.
const (
	chunkBits  = 16 // 64 KiB: random 4 KiB requests seldom meet, and most requests are narrow
	bucketBits = 9  // 512 buckets, 2 KiB: few collisions with the some hundred requests in flight there are
	numBuckets = 1 << bucketBits
)

// index names an entry of a flight. 0 is none.
type index int32

// span is a range of bytes that is taken, in the index of overlaps.
type span struct {
	lo, hi uint64 // [lo, hi); lo == hi takes nothing
	chain  [2]index
}

// overlaps tells whether two ranges have a byte in common.
func (s *span) overlaps(o *span) bool { return s.lo < o.hi && o.lo < s.hi }

// chunks are the first and the last that the range touches. Not for an empty one.
func (s *span) chunks() (first, last uint64) { return s.lo >> chunkBits, (s.hi - 1) >> chunkBits }

func (s *span) wide() bool {
	first, last := s.chunks()
	return last-first > 1
}

// buckets are the one or two chains that a narrow range is in: equal if it is one.
func (s *span) buckets() (a, b uint32) {
	first, last := s.chunks()
	return bucketOf(first), bucketOf(last)
}

// bucketOf is a multiplicative hash (Knuth, The Art of Computer Programming, vol. 3, 6.4), so that the strides of
// striped files do not meet in a bucket.
func bucketOf(chunk uint64) uint32 {
	return uint32(chunk * 0x9E3779B97F4A7C15 >> (64 - bucketBits))
}

// setRange takes a request's range; one that reaches past 2^64 is cut there, and refused by the primary.
func (s *span) setRange(offset uint64, length uint32) {
	s.lo, s.hi = offset, offset+uint64(length)
	if s.hi < s.lo {
		s.hi = math.MaxUint64
	}
}

// overlapIndex is the index over the entries of a flight.
type overlapIndex struct {
	buckets [numBuckets]index // heads of chains, by span.chain
	wide    index             // head of the list, by span.chain[0]
	taken   int               // ranges in the index
	narrow  int               // of them, in chains
}

// insert adds entry i, whose range is not empty.
func (x *overlapIndex) insert(entries []entry, i index) {
	s := &entries[i].span
	x.taken++
	if s.wide() {
		s.chain[0], x.wide = x.wide, i
		return
	}
	x.narrow++
	a, b := s.buckets()
	s.chain[0], x.buckets[a] = x.buckets[a], i
	if b != a {
		s.chain[1], x.buckets[b] = x.buckets[b], i
	}
}

// remove takes entry i out.
func (x *overlapIndex) remove(entries []entry, i index) {
	s := &entries[i].span
	x.taken--
	if s.wide() {
		unchain(&x.wide, entries, i, func(o *span) *index { return &o.chain[0] })
		return
	}
	x.narrow--
	a, b := s.buckets()
	unchain(&x.buckets[a], entries, i, func(o *span) *index { return o.link(a) })
	if b != a {
		unchain(&x.buckets[b], entries, i, func(o *span) *index { return o.link(b) })
	}
	s.chain = [2]index{}
}

// link is the range's link in the chain of a bucket that it is in.
func (s *span) link(bucket uint32) *index {
	if a, _ := s.buckets(); a == bucket {
		return &s.chain[0]
	}
	return &s.chain[1]
}

func unchain(head *index, entries []entry, i index, link func(*span) *index) {
	at := head
	for *at != i {
		at = link(&entries[*at].span)
	}
	*at = *link(&entries[i].span)
}

// find appends to hits the other entries whose range overlaps that of entry i, each once. Entry i itself may be in
// the index or not.
func (x *overlapIndex) find(entries []entry, i index, hits []index) []index {
	s := &entries[i].span
	for o := x.wide; o != 0; o = entries[o].span.chain[0] {
		if o != i && s.overlaps(&entries[o].span) {
			hits = append(hits, o)
		}
	}
	if x.narrow == 0 {
		return hits
	}
	if s.wide() {
		for b := range uint32(numBuckets) {
			hits = x.findIn(entries, i, b, hits)
		}
		return hits
	}
	a, b := s.buckets()
	hits = x.findIn(entries, i, a, hits)
	if b != a {
		hits = x.findIn(entries, i, b, hits)
	}
	return hits
}

// findIn is find in one chain. Two ranges that meet in two chains are found in that of the first chunk which they
// share.
func (x *overlapIndex) findIn(entries []entry, i index, bucket uint32, hits []index) []index {
	s := &entries[i].span
	for o := x.buckets[bucket]; o != 0; {
		t := &entries[o].span
		if o != i && s.overlaps(t) && bucketOf(max(s.lo, t.lo)>>chunkBits) == bucket {
			hits = append(hits, o)
		}
		o = *t.link(bucket)
	}
	return hits
}
