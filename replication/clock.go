package replication

import (
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadMode says how a node's primaries and backups make sure that a read is not stale.
type ReadMode string

// The read modes.
const (
	ReadAuto    ReadMode = "auto"    // leases where the machine's clock is a hardware counter, else confirm
	ReadConfirm ReadMode = "confirm" // every burst of reads is confirmed by all backups; no leases given or taken
)

// clockSource is where Linux says what its clocks are made of.
const clockSource = "/sys/devices/system/clocksource/clocksource0/current_clocksource"

// hardwareClock tells whether the machine's clocks are made from a counter in its processor that runs at one rate:
// anything else may be stopped or sped up by a hypervisor, or be corrected in jumps.
func hardwareClock() bool {
	b, err := os.ReadFile(clockSource)
	switch strings.TrimSpace(string(b)) {
	case "tsc", "arch_sys_counter":
		return err == nil
	}
	return false
}

// bootTime reads CLOCK_BOOTTIME: it is steered in rate, by less than a thousandth, and never set; and unlike
// CLOCK_MONOTONIC it goes on while the machine is suspended, so that a lease does not outlast its machine's sleep.
func bootTime() Instant {
	var ts unix.Timespec
	// Raw: it does not block, and the scheduler, told of a system call in each burst of reads, would do more than the call.
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0 // no reading: nothing is granted and nothing is relied on
	}
	return Instant(ts.Nano())
}
