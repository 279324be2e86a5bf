// Package wal is the write-ahead log of one replica: a ring of preallocated segments that holds frames, batches of
// records. It appends, makes durable, recovers, cuts and ships frames. It does not know what a record does to a disk,
// which records are committed, or who the other replicas are.
//
// It promises: a frame is there whole or not at all; after any crash the log is a prefix of what was appended that
// holds everything that Sync or Open called durable; what was cut never comes back; damage to what was durable is
// reported, never skipped. It does not promise to find a last frame that was lost together with every trace of it
// (nobody but its owner knows that it was there: Start.Durable, and the other replicas), nor does it repair by itself: Restore
// puts back what the owner has got from elsewhere.
//
// # The pool
//
// A log is a directory with a fixed number of files of one size, 00.seg, 01.seg, ..., zero-filled when the log is
// created and overwritten in place for ever. They have no headers. A position (Pos) counts blocks of 4 KiB since the log
// was created: with B blocks to a segment and N files, position p is block p % B of segment p / B, which lies in file
// (p / B) % N. A frame begins on a block and does not span segments: one that does not fit into the rest of a segment
// goes to the start of the next, and the rest is left as it was. So the frame that follows is in one of two places: behind
// the last one, or at the start of the next segment.
//
// Where recovery begins (Start) is kept by the log's owner, in its own metadata: the log holds no pointer to itself.
//
// # The frame
//
// All numbers are little-endian. The bytes on the wire are the bytes on disk.
//
//	header area, padded with zeroes to a multiple of 4096
//	  offset  size  fixed header
//	       0     4  magic "LKS1"
//	       4     4  crc32c of the header area from offset 8 to its end, padding included
//	       8     2  version of the format, 1
//	      10     2  flags: 1 = on stable storage before it is acknowledged, in every sync mode
//	      12     4  chain: the crc at offset 4 of the frame before
//	      16     8  salt of the volume
//	      24     8  epoch: view in which it was ordered
//	      32     8  incarnation of the primary that ordered it
//	      40     8  LSN of the first record
//	      48     4  number of records, 1 to 4096
//	      52     4  blocks of payload, 0 to 8193
//	      56     8  commit: last LSN that was committed when it was made
//	      64     8  stable: last LSN that was, then, on stable storage on every replica that had to have it
//	      72     8  time, ns since 1970
//	      80    16  zero
//	  for each record, 32 bytes
//	       0     8  block
//	       8     8  session of the client's request, 0 = none
//	      16     8  number of the request in its session
//	      24     4  count of blocks
//	      28     2  where its payload begins: blocks of payload of the records before
//	      30     1  kind: 1 write, 2 zero, 3 trim, 4 view, 5 attach
//	      31     1  flags: 1 = keep the space of a zero allocated
//	  for each block of payload, 4 bytes
//	       0     4  crc32c(le64(block number) ‖ data); 2 if that is less
//	payload, 4096 bytes a block, in the order of the records
//
// Magic, crc rule, version and the two counts stay where they are in every later version, so that a newer frame is told
// from a broken one and not cut. The header's crc covers the sums and so, through them, the payload; as the next frame
// repeats it, two logs with the same crc at an LSN are the same up to there.
//
// # Marks
//
//	First ≤ checkpoint.LSN + 1    oldest record in the pool
//	checkpoint ≤ Durable ≤ End    what recovery may skip; what a power failure leaves; what is written
//
// # Invariants
//
// The numbers are those of the whole storage; W1 and W2 (apply and show only what is committed) are kept by the owner.
//
//	W3  A segment is overwritten only when it lies wholly before the checkpoint.
//	W4  A cut is atomic, and done before anything is appended behind it: afterwards no block that could be taken for
//	    a header with records behind the end is left.
//	W5  The first error of a write or a sync is the log's answer to everything that follows. Nothing is tried again: the
//	    kernel drops what it could not write, and the next sync succeeds.
//	W6  Open syncs every segment before it reads it, and drops it from the cache: what a dead process left there may be
//	    on no disk.
//	W7  A bad frame at LSN x is corruption if anything proves that x was durable: a later frame with an intact header
//	    that says stable ≥ x; a later frame at the start of a segment behind x's (W8); the owner's word. Else it is
//	    the torn tail of a crash, and is cut. A corrupt frame of which the header area is whole costs its lost blocks: it
//	    stays in the log, and the owner knows them by their sums. One without refuses the log.
//	W8  A segment is entered only when everything before it is durable. So pieces of unfinished frames lie in one
//	    segment, Sync has one file to sync, and the scan for W7 has an end.
//
// W7 holds on a backup too, which writes frames before it has synced earlier ones, because stable counts only what is
// durable on all. A learner is sent frames that the others have had stable for long: on it, headers prove nothing of each
// other, only W8 and the owner's word do (Start.Learner).
//
// A ghost is a frame behind the end of the log, left by a cut or a crash. The LSN keeps out the frames of older laps,
// the salt those of another volume, the chain those of another history. None of them helps when a replica gets back,
// byte by byte, a frame that it lost: the ghost behind would be the next again. Hence W4.
//
// # What a crash leaves behind
//
//	Create    a directory under another name, which the next Create removes; or the whole log.
//	Append    any of the sectors of any of the frames that were not synced; recovery ends at the first that is not
//	          whole, erases the rest, and the log goes on there.
//	Sync      likewise; what an earlier Sync covered is there.
//	Cut       (1) one sector, the end mark, is written where the log is to end, and synced: before that the old log, from
//	          then on the cut one. (2) The headers of the cut frames are erased and synced: recovery finds the mark and does
//	          the rest. (3) The mark is erased and synced: it is there or not, and there is nothing behind it.
//	Restore   payload as it was, or still bad; the frame's other blocks and its header are not touched.
//	Open      it cuts in the same way; a second one comes to the same end.
//	Reset     the owner's Start with Blank is stable before it begins: recovery does it over.
package wal
