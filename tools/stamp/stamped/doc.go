// Package stamped torments a disk with writes that can be recognised, and knows at any moment what a read may
// return. It finds lost, stale, torn, misplaced and resurrected writes of a disk that claims to be single-copy
// consistent, through crashes and reconnections of whatever serves it.
//
// The unit is a cell: a range of bytes inside one 4 KiB block that is only ever written whole. The disk's first
// part has one cell per block, the rest (the odd part) has three cells of 1363 bytes behind a gap of 7, so that
// every write there is unaligned and shares blocks with its neighbours: a disk that loses an update while it
// reads, modifies and writes a block is caught. What is in the gaps is of no interest.
//
// # A cell's content
//
// Either all zeroes (never written, trimmed, or zeroed), or a stamp, little-endian:
//
//	offset  bytes
//	     0      8  magic "stamped1"
//	     8      8  run: drawn at random when the ledger was made
//	    16      8  cell number
//	    24      8  sequence number of the write; grows with every write, trim and zeroing of the run
//	    32      4  writer: the worker that issued it
//	    36      4  crc32c of the cell, this field taken as zero
//	    40      -  filling, derived from all of the above
//
// # Rules
//
// A version is one write to a cell, and no cell has two writes in flight; so versions are ordered by their
// sequence numbers. A version's write ends by being acknowledged or, when the connection is lost, abandoned.
//
//	S1  A read returns whole cells: zeroes, or a stamp of this run, of this cell, whose checksum is right.
//	S2  A read returns no version older than one that was acknowledged before the read began.
//	S3  A read returns no version older than one that another read had returned before this read began.
//	S4  A read returns no version that was not issued before the read ended.
//	S5  Zeroes are a version too: they need a zeroing, or a cell never written, that S2 to S4 allow.
//	S6  Once nothing is in flight any more, an abandoned write is there in all of its cells or in none, as far as
//	    no later write covers them.
//
// S1 to S5 are checked at every read, S6 by Verify. For cells whose writes are never concurrent with each other
// S2 to S5 are exactly linearizability, with one rule more: an abandoned write may not take effect after a later
// write of the same cell was acknowledged, which is what a block device's clients rely on when they retry.
//
// It does not check the order of writes to different cells, nor what is left after a loss of power.
package stamped
