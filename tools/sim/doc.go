// Command sim simulates whole clusters: storage nodes, view servers and clients, for some seconds of simulated time, under
// faults. A seed decides everything that is chance, so a run that fails can be played again, step by step.
//
//	go run ./tools/sim -seeds 20000          many runs; about 15 ms each on a core of its own pair
//	go run ./tools/sim -seed 7 -trace        one run, one line an event
//	go run ./tools/sim -soak 1h
//	go run ./tools/sim -faults kill,oneway   only these kinds of faults
//	go run ./tools/sim -mutants all          does it find each broken rule?
//
// # What is real
//
// Everything that decides about data is what is shipped: replication.Replica with its Core, streams, sessions and wire
// format; blockdev.Store and wal on a file system in memory that crashes as a disk does; viewsvc.State and
// viewsvc.Monitor. The replica's goroutines run as coroutines (replication.Runtime): one at a time, and wherever one
// takes a lock or waits the seed decides who is next. The clock jumps from one event to the next.
//
// # What is not
//
// Raft is a list of commands that are committed late, or not at all, or without anybody hearing of it. HTTP and NBD are
// messages of Go values. replication.Node and the gateway are retold (machine.go, client.go): how they ping, reconnect,
// repeat requests and count generations.
//
// # What goes wrong
//
// nemesis.go: processes are killed and stopped, machines lose power one at a time and all at once with any part of what
// was not synced, also in the middle of a storage operation; disks are slow, fail, are replaced, flip bits; the network
// delays, loses in one direction, partitions and resets; clocks run fast, slow and hardly at all; view servers stop and
// leadership moves; volumes are handed over. In each run a few kinds are common and others do not happen.
//
// # What is checked
//
//   - Histories are linearizable, sector by sector (porcupine): what was acknowledged is never lost, nothing stale is
//     read, nothing comes back. A write whose answer was lost may happen at any later time, or never.
//   - A sector holds one write's bytes, which belong there.
//   - No request fails but by an I/O error on a block that the nemesis damaged.
//   - I2 and the numbers of views, as each is made; I5, I7, I9 and I10 whenever something is acknowledged and whenever a
//     primary opens (asserts.go). The replicas' own assertions panic.
//   - When the faults are over, the volume has all its members and every request is answered within a minute, and the
//     members hold the same bytes (I12).
//   - Certain things have happened sometimes (stats.go): a run in which no tail is ever cut proves little about cutting.
//
// mutants.go breaks one rule at a time; each has to be found.
package main
