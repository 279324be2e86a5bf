// Package memfs is a file system in memory for tests of crashes and disk errors. It keeps apart what a reader sees and
// what is on stable storage, and remembers each operation that was not synced yet.
//
// It lies beside the interface that it implements and not in tools/: the tests of every package that stores something
// use it, from inside those packages, and may not import what imports them.
//
// # Crashes
//
// A crash test runs a deterministic workload once. Before each operation of it a Crasher makes every disk that a power
// failure could leave at that moment, and has it checked against what the workload was promised so far:
//
//	fs := memfs.New()
//	c := memfs.Crasher{Check: func(disk *memfs.FS) error { ... recover from disk, compare ... }}
//	c.Watch(fs)
//	... workload on fs ...
//	c.Crash(fs) // and once more at the end
//	if c.Err != nil { ... }
//
// Operations that count are those that change something or sync; they are numbered from 0. StopAt has the machine stop at
// one of them, for tests that want to see what the workload makes of it.
//
// # Bad disks
//
// FailAt makes an operation fail, Inject asks about each what a bad disk makes of it: an error, a write that is short,
// lost or lands elsewhere, a wait. Flip is rot. After a failed Sync the data is still there to read (or not:
// Effect.Drop), and what was written before is never made stable by a later Sync that succeeds.
//
// # The model of the disk
//
//   - D1 a sector of 512 bytes is written whole or not at all;
//   - D2 of the operations that were not synced any subset survives a crash, of a write any subset of its sectors;
//   - D3 those that survive take effect in the order in which they were made, or in the opposite one (Fate.Reversed);
//   - D4 File.Sync covers a file's content and length, FS.SyncDir a directory's entries; a rename is one operation of
//     both directories; directories are journaled: D3's opposite order is not for them;
//   - D5 a process that is killed leaves everything that it wrote to be read, and nothing more of it stable.
package memfs
