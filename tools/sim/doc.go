// Command sim simulates whole clusters: storage nodes, view servers, gateways and clients, for some seconds of simulated
// time, under faults. A seed decides everything that is chance, so a run that fails can be played again, step by step.
//
//	go run ./tools/sim -seeds 20000          many runs
//	go run ./tools/sim -seed 7 -trace        one run, one line an event
//	go run ./tools/sim -soak 1h
//	go run ./tools/sim -faults kill,oneway   only these kinds of faults; claims, leases, three: each run has these, and 3 copies
//	go run ./tools/sim -mutants all          does it find each broken rule?
//
// # What is real
//
// Everything that decides about data is what is shipped: replication.Replica with its Core, streams, sessions and wire
// format; blockdev.Store and wal on a file system in memory that crashes as a disk does; viewsvc.State and
// viewsvc.Monitor; gateway.Flight, which decides what a gateway sends, when, how often and under which number. The replica's
// goroutines run as coroutines (replication.Runtime): one at a time, and wherever one takes a lock or waits the seed
// decides who is next. The clock jumps from one event to the next.
//
// # What is not
//
// Raft is a list of commands that are committed late, or not at all, or without anybody hearing of it; a leader that is
// left behind answers from the state of before for as long as its lease lasts. HTTP and NBD are messages of Go values.
// replication.Node and the gateway's connections are retold (machine.go, node.go, gateway.go, claim.go): how they ping,
// reconnect, repeat requests, count generations and attach exclusively.
//
// # What goes wrong
//
// nemesis.go, faults.go: processes of nodes and gateways are killed, stopped and ended in good order; clients hang up
// with requests under way and come back; machines lose power one at a time and all at once with any part of what was
// not synced, also in the middle of a storage operation; disks are slow, fail, are full, are replaced, flip bits; the
// network delays, loses in one direction, partitions and resets; clocks run fast, slow and hardly at all; view servers
// stop, leadership moves, and old leaders do not notice; a primary is left behind with some of its clients in the very
// moment in which it is replaced (strand.go); nodes are upgraded, and for a while do not understand each other;
// volumes are handed over, verified and scrubbed; in some runs machines get disks that they had before (putback.go). In each
// run a few kinds are common and others do not happen.
//
// operator.go: in half of the runs there is an operator, who resumes a volume that is held and forces an old copy to be
// primary when all members are gone. Only then may what was acknowledged be lost; without him, faults that lead there
// (sync mode flush) are left out.
//
// # What is checked
//
//   - Histories are linearizable, sector by sector (porcupine): what was acknowledged is never lost, nothing stale is
//     read, nothing comes back. A write whose answer was lost may happen at any later time, or never; but once its
//     session was fenced, or its client has left the gateway, not after what came later (check.go).
//   - Where an operator accepted a loss, one history ends and another begins with whatever the disk ever held; what had been
//     flushed is there all the same if it was only resumed.
//   - A sector holds one write's bytes, which belong there.
//   - No request fails but by an I/O error on a block that the nemesis damaged.
//   - In a quarter of the runs the volume grows. What the view service says that it has can be used by all clients, at
//     every primary from then on.
//   - I2 and the numbers of views, as each is made; I5, I7, I9, I10 and min_copies whenever something is acknowledged and
//     whenever a primary opens (asserts.go): no read is answered, by whatever lease, that was taken when another primary
//     served already. The replicas' own assertions panic.
//   - Who has the volume for himself has it: nobody else is answered, and nothing of others is carried out any more (claim.go).
//   - Verify and scrub find damage where there is some and nowhere else; after a scrub no block is bad of which there is
//     a good copy.
//   - When the faults are over, the volume has all its members and every request is answered within a minute, and the
//     members hold the same bytes (I12).
//   - Certain things have happened sometimes (stats.go): a run in which no tail is ever cut proves little about cutting.
//
// mutants.go breaks one rule of rules.go at a time; each has to be found.
package main
