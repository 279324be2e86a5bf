// Package blockdev holds the Device contract (device.go) and Store, one replica's storage: a write-ahead log of
// frames in front of a plain raw image.
//
// A Store takes frames (Append), makes them stable (Sync), and makes them visible when it is told that they are
// committed (Commit). It never decides that itself. An uncommitted frame never touches the image, so rolling
// back is cutting the log's tail (Cut), and the image is always made from a prefix of history.
//
// What it does not do: it knows nothing of views, peers or clients; it serialises no writers (one goroutine at a
// time appends, syncs or cuts); it orders no reads against commits beyond "a read that begins after Commit
// returned sees it". Single blocks are read atomically, ranges of many blocks are not.
//
// # A replica's directory
//
//	LOCK        flock, held while a Store is open
//	meta        two 4 KiB slots with the same content (table below)
//	meta.new    only while the directory is being formatted: renamed to meta as Format's last step
//	data.img    raw image, exactly the volume's size, sparse
//	data.crc    4 bytes per block, little-endian: wal.BlockSum(block, data); less than 2 = reads as zeroes: 0 = a
//	            hole, 1 = takes space (WRITE_ZEROES with NO_HOLE)
//	sessions    which numbered requests of clients the history holds (sessions.go), 2 × 1 MiB slots, written as those of meta
//	regions     8 bytes per region of RegionBytes, little-endian: in the lower 48 bits the LSN of the last committed change,
//	            or newer; in the upper 16 the lower bits of crc32c(le64(region) ‖ le64(LSN)). 0 = never changed
//	scrub       how far the background scrub came: magic "LKSTSCRB", next block, end of the last whole pass in ns since
//	            1970, crc32c of these 24 bytes; never synced, made when it is missing, not believed when it is bad
//	wal/        the log's segments (package wal)
//
// data.crc and regions are padded to whole 4 KiB pages. A block that its sum says to be zero is never looked up in
// the image; the image is punched or zeroed all the same, so that data.img alone is the disk's content after a clean stop.
//
// # meta slot, version 1
//
//	offset  size  field
//	     0     8  magic "LKSTMETA"
//	     8     4  format version
//	    12     4  crc32c of the slot with this field as zeroes
//	    16     8  generation: grows by one with each save
//	    24     8  volume size, bytes; it only grows
//	    32     4  block size, bytes
//	    36     4  region size, bytes
//	    40     8  segment size of the log, bytes
//	    48     4  segments of the log
//	    52     4  flags: 1 clean stop, 2 copying, 4 the log is blank
//	    56     8  salt of the log
//	    64     8  incarnation: how often the store was opened
//	    72     8  checkpoint: LSN
//	    80     8  checkpoint: log position after that LSN
//	    88     4  checkpoint: chain
//	    92     4  zero
//	    96     8  commit: LSN known to be committed and stable here
//	   104     8  clean stop: last LSN of the log, all of it stable; else 0
//	   112     4  entries in the epoch index
//	   116     4  bytes of protocol state
//	   120     8  generation of the session table at the checkpoint, or older
//	   128  5×64  cluster, volume, replica, volume name, boot id: a length byte, then the text
//	   448  64×16 epoch index: epoch, first LSN
//	  1472  2048  protocol state, opaque to the store
//	  3520     8  the files may be long enough for that size, larger than the volume's; 0 = for the volume's
//	  3528   568  zero
//
// Integers are little-endian. A slot that holds anything else where zeroes are due is refused.
//
// A save with generation g writes slot g mod 2, syncs, and then writes the same content to the other slot, which
// the next save overwrites first. So at any moment one slot is stable and not being written to (a torn write
// costs nothing that was promised), and soon afterwards there are two copies (a slot that rots costs nothing
// either). A scheme that writes the slots in turn with different content cannot tell a torn newest slot from a
// rotten one, and would go back to an older view.
//
// # Watermarks
//
//	checkpoint ≤ applied ≤ min(recorded, committed, durable)     recorded, committed, durable ≤ end
//
// All are ends of frames. In sync mode flush committed may be beyond durable. recorded is the part of the commit point
// that recovery will know of: the largest commit LSN in a frame that is stable in this log, or the meta slot's.
//
// # Invariants
//
// Of the log and the image, as they bind here:
//
//   - W1 the image is written only for LSN ≤ min(committed, durable): applyBatch asserts it.
//   - W2 what is not committed is not visible: only Commit fills the page table.
//   - W3 a segment is reused only when its last LSN ≤ checkpoint: Checkpointed is called after B3.
//   - W4 a cut tail cannot come back: wal.Log.Cut and Reset see to it.
//   - W5 the first storage error poisons the store for ever: every later change fails with it (poison). A write to the
//     image, the sums, the regions or the sessions that is refused for want of space is no such error: nothing was lost,
//     the blocks are still in the page table, and they are applied later (full.go). A failed sync always is one.
//   - W6 what a dead process left in the page cache is synced before it is read (OpenStore).
//   - W7 a torn tail is cut, a hole in what was stable is corruption (wal.Open); of a learner's log, where frames say what is
//     stable elsewhere, only what it made stable itself counts. A committed frame whose payload alone is bad is like
//     one that went bad while the store was open (B8).
//
// The store's own:
//
//   - B1 the image is written only for LSN ≤ recorded. So after a crash committed ≥ applied still holds, and no
//     later Cut can leave a record in the image that is not in the log. With nothing to write that would
//     carry the commit point into the log, the meta slot takes it (saveCommit).
//
//   - B2 a block has a page-table entry from its commit until data and sum of its newest version are in the
//     image. Clearing compares the entry with the version applied.
//
//   - B3 a checkpoint at L is written to meta only after image, sums and regions, as they were with everything
//     ≤ L applied, are synced; the log is told only after meta is.
//
//   - B4 every block that Read gives was verified against its sum, from the log and from the image.
//
//   - B5 regions[r] ≥ the LSN of the last committed change in region r, on disk as well for all LSN ≤ checkpoint.
//     It may be newer than true: that costs a needless copy, never a missed one.
//
//   - B6 the image and the sums are changed by one goroutine at a time (applyMu).
//
//   - B7 while the copying flag is set the image is not a prefix of history; the flag goes only when everything
//     that was copied is stable and everything committed is applied. No region is taken that is older than what is applied.
//
//   - B8 a frame that cannot be read when it is to be applied is applied from the page table: the blocks that are still
//     good where it was; of the lost ones the sum alone, so that they read as corrupt until they are repaired. The
//     commit point is recorded before that, and a checkpoint follows at once.
//
//   - B9 a block that has no data by its sum, and no entry in the page table, is zero or a hole in the image: so sums
//     that were lost, or are older than the image, are found out (lostsums.go). It does not hold while copying.
//
//   - B10 the session table on disk has all that the records up to the checkpoint say; that of the later ones follows
//     from the log. It never has anything of a record that was not committed.
//
//   - B11 no record in the log, VIEW records with their sizes included, goes beyond the size in meta, and the files
//     are long enough for that, and no longer than meta says. What lies beyond the size was never written: it reads as
//     zeroes, and has neither sums nor a region's entry.
//
// # Growing
//
// A replica grows in two steps, while everything else goes on (grow.go). Prepare makes the files longer, as soon as somebody
// wants a larger volume. Grow raises the size, before the VIEW record with the new size is appended (B11): at that time it
// is one save of meta. A store can be larger than the volume is for its clients, for ever if that record is cut off. That is
// harmless: nothing was written there.
//
// # How a read finds its block without locks around I/O
//
// Look up the page table. With an entry, read the log at its position; without, read the sum, then the image.
// If the sum matches, that is a version which was the newest at some moment during the read: no two committed
// blocks ever have the same log position, and an image block changes only while it has an entry. If it does not match,
// look up again: a changed entry or sum means that applier or committer came in between, and the read is tried again; the
// same entry and sum mean that the block is bad.
//
// # The applier beside the clients
//
// Clients wait for the log's syncs, and nobody for the applier. So it is lazy: up to a quarter of the log is left to it
// while clients write, and blocks that are written again meanwhile go to their place once. It sorts what it applies, and
// never has more than a small burst in the device's queue (paced.go). Above three quarters of the log, Delay holds
// frames up, a little at first (pressure.go), and checkpoints come with each segment; a log without room takes no
// frame before OnRoom.
//
// # A full disk, and one that hangs
//
// The log and meta have all their space from Format on; the other files grow. While they cannot, DiskFull tells so, clients
// go on for as long as the log has room, and the applier tries again with each turn, behind the last record that it has brought
// into the image: space that comes back in time costs nothing and needs no restart. When the log is as good as full too, the
// replica says so (Full), and the members that have room go on without it until it has some again. (On a file system that never
// overwrites in place the log may be refused space as well; that poisons.)
//
// An operation that does not come back holds up who needs it and nobody else; OldestIO tells of those that clients wait
// for. Close waits a minute for a disk that gets nothing done, and then leaves the files open (close.go).
//
// # Scrubbing
//
// A pass reads the live log and every block with a sum, from the device and past the page cache, at a bounded rate, and
// waits while clients keep the disk busy (scrub.go). A bad block is repaired from the page cache if that is still
// right, else by the Repairer that replication sets; else it stays as it is and is an error for whoever reads it.
// Background passes begin a week after the last ended (scrubber.go).
//
// # What is not found out here
//
// A disk that lies well enough: which says that it wrote a block and its checksum, and wrote neither; or the last frame of
// the log, or a slot of meta before a crash, or an entry of regions (rot there is found: the region counts as changed at
// the checkpoint). What is left was right once. Comparing members (I12) finds it.
//
// # What a crash leaves
//
//	during               found at the next open
//	Format               meta.new and no meta: not a replica; Format starts over
//	Append               frames after the last sync, or not: wal.Open finds the end, W4, W7
//	apply                blocks and sums of either version, torn even, all of them ≤ recorded and > checkpoint:
//	                     recovery puts them into the page table again, and they are applied again
//	checkpoint           before the meta save is stable, the old checkpoint, with its frames all there;
//	                     after it, the new one
//	meta save            the slot not being written to: the old state or, from the slot synced, the new
//	Cut                  the old end or the new one (W4); the commit point is in meta before the log is touched
//	BeginCopy            before its meta save, the old state; after it, flag 4 makes the open finish the reset
//	WriteRegion          regions of either version; the copying flag stays, and they are copied again
//	EndCopy              copying with everything stable, or no longer copying
//	Prepare              the old size, files of any length between what it needs and what meta says; done again
//	Grow                 the old size or, from the slot synced, the new
//	Close                not a clean stop, nothing else
package blockdev
