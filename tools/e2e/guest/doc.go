// Package guest shows `lockstep attach` in a real kernel. It boots Debian's kernel in qemu, on a machine whose own kernel
// needs no nbd driver, and drives it over a serial line while processes of the cluster are killed and stopped.
//
//	go test ./tools/e2e/guest            some two minutes on two cores
//	go test ./tools/e2e/guest -v         with what the guest's console says
//
// # How it is built
//
// The kernel and its modules come from the Debian package, which is downloaded once and kept in the user's cache
// directory, taken apart. The guest's root is an initramfs: busybox, the modules that are needed with what they depend
// on, the static lockstep and scribe binaries, and mkfs, fsck and udev with their libraries from this machine. The guest has no
// disk but the one that it attaches.
//
// # How guest and cluster meet
//
// Nodes tell gateways where they listen, so that address must mean the same in the guest as on the host; the
// loopback address does not. The test runs itself in a network namespace of its own, in which the loopback device has
// one more address (hostAddr). The cluster listens there, and qemu's user network, which lives in the same namespace,
// connects the guest to it. No packet leaves the machine.
//
// # The serial line
//
// The console goes to a log. A second line carries commands: the host writes one shell script in base64, the guest runs
// it and answers with one line, "@", the exit code, and the output in base64. Each command has a limit of time.
//
// # What is written
//
// scribe, in the guest, writes files with fsync and blocks in place with O_DIRECT, notes in the guest's memory what was
// acknowledged, and compares: each block with its latest version at once, again and again (a late original that wins over
// its replay is an old version), and everything at the end.
package guest
