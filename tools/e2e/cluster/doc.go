// Package cluster runs Lockstep as its users do: the real binary, one process per role, on loopback ports and a
// directory that go away afterwards. Tests and benchmarks kill, stop and restart the processes one by one.
//
// There are two shapes. Start gives a Cluster, every role of which is a child of the caller; StartDev gives a
// Dev, which is `lockstep dev` with children of its own.
//
// Tool is the frame of the commands that measure a cluster.
//
// Nothing here sleeps blindly: Await polls for a condition up to a deadline and then says what it saw last.
// Processes are only ever signalled by the pid of a child that was not waited for yet, or by a pid that the
// cluster's own status names.
package cluster
