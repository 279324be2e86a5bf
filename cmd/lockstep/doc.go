// Command lockstep is every role of a Lockstep cluster, and its operator's tool, in one static binary.
//
// This package wires and renders; it decides nothing about data. Flags become the Options of another package, that
// package's typed events become log lines, its errors become one line on standard error and an exit code. zerolog and
// Prometheus are known here only.
//
// # Roles
//
//	lockstep viewd     a view server: says who is primary
//	lockstep node      a storage server: holds replicas of volumes
//	lockstep gateway   the NBD server that clients talk to: finds the primary, hides failovers
//	lockstep dev       a whole cluster on this machine, as child processes, for trying things out
//
// A role runs until SIGINT or SIGTERM, which ask it to stop in good order: a node says goodbye to the view service, so
// that its volumes move at once. A second signal ends it immediately, which loses nothing either: every role must
// survive kill -9.
//
// # Block devices
//
//	lockstep attach VOLUME    /dev/nbdN, served by this process; --list, --fuse
//	lockstep detach VOLUME
//
// What is attached is noted in --state-dir, so that an agent that was killed can be started again (package
// blockdev/kernel has the rules, K1 to K9).
//
// # Operator's commands
//
//	lockstep volume create|list|show|resize|resume|force|detach-all|delete
//	lockstep status, lockstep views, lockstep events, lockstep handover, lockstep verify, lockstep scrub, lockstep forget
//
// They ask the view service only. It is named by --view, else by $LOCKSTEP_VIEW, else it is that of the `lockstep dev`
// in the working directory, else of one at its usual port (127.0.0.1:7400). The roles have no such last resort: a node
// that joins the wrong cluster by default would be worse than one that does not start.
//
// # Inspection
//
//	lockstep wal dump DIR, lockstep wal verify DIR
//
// They read a replica's directory, of a node that is stopped, and change nothing. Damage does not stop them: the one
// lists, the other tells in a line each, whatever there still is. Reading is done by wal.Inspect and blockdev.Inspect.
//
// # Output
//
// Standard output has only what was asked for. Everything else goes to standard error: logs (for people when it is a
// terminal, JSON otherwise) and errors, each one line
//
//	lockstep: what failed: why: what to do next
//
// The JSON of `status`, `views` and `wal` is an interface: fields are added, never renamed or removed (status_json.go,
// wal_json.go).
//
// # Exit codes
//
//	0    done; status: every volume is safe; wal verify: the replica is sound
//	1    it failed; status: a volume is degraded; wal verify: the replica is damaged
//	2    status: a volume is unavailable
//	3    status: cannot tell, the view service did not answer or does not know the volume
//	4    attach: another client has the volume, or it is gone; to start again would not help
//	64   wrong usage: an unknown command or flag, a malformed value; nothing was done
//	128+n  a role was ended by a second signal n before it had stopped in good order
//
// 64 is EX_USAGE of sysexits.h; it leaves 1 to 3 to the verdicts, so that a typing error in a monitoring script is
// not taken for a degraded disk.
//
// # Reading the source
//
//	main.go, root.go, version.go, exit.go  the command tree, errors to exit codes
//	size.go, address.go, name.go  values on the command line
//	operator.go                   what the operator's commands have in common
//	status*.go, views.go, events.go  what the cluster looks like, a verdict first, and how it came to that
//	volume.go, resize.go, handover.go, force.go, forget.go, drop.go  what an operator can change
//	wal*.go                       a look into a replica's directory
//	role*.go, logging.go          the roles
//	attach*.go, detach.go         block devices
//	metrics*.go                   --metrics: Prometheus collects a role's numbers when it is asked
//	dev*.go                       the cluster for trying things out
package main
