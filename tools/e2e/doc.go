// Package e2e holds the tests that run the real binary, one process per role, and kill, stop, restart and insult
// those processes while real clients (fio, nbdcopy, qemu-img, ext4, the stamped-write checker) work.
//
//	go test ./tools/e2e              the default set, some minutes on two cores
//	go test ./tools/e2e -soak 1h -timeout 3h    longer, with more crashes, and random faults for an hour
//	go test ./tools/e2e -seed N      the random choices of an earlier run, whose seed it printed
//
// They need Linux and some tools; a test whose tool is missing is skipped with the reason, and fails when
// $CI is "true". The test with a file system needs root, /dev/fuse and loop devices.
//
// Package cluster, below, runs the processes. The limits of time in the tests are generous, since machines that
// run tests are busy; tools/bench measures.
package e2e
