// Package memfs is a file system in memory for tests of crashes and disk errors. It keeps apart what a reader sees and
// what is on stable storage, and remembers each operation that was not synced yet.
//
// A crash test runs a deterministic workload once for each operation n of it:
//
//	fs := memfs.New()
//	fs.StopAt(n)          // operation n, and every one after it, fails with ErrStopped and has no effect
//	workload(fs)
//	for _, fate := range memfs.Fates(len(fs.Pending()), rng) {
//		disk := fs.Crash(fate) // as found after a power failure
//		... recover from disk, check ...
//	}
//
// Operations that count are those that change something or sync; they are numbered from 0. FailAt makes one of them
// fail instead, as a bad disk does: after a failed Sync the data is still there to read, and what was written before
// is never made stable by a later Sync that succeeds.
//
// The model of the disk:
//
//   - D1 a sector of 512 bytes is written whole or not at all;
//   - D2 of the operations that were not synced any subset survives a crash, of a write any subset of its sectors;
//   - D3 those that survive take effect in the order in which they were made;
//   - D4 File.Sync covers a file's content and length, FS.SyncDir a directory's entries; a rename is one operation of
//     both directories.
package memfs
