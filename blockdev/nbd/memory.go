package nbd

import (
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// What a client of this package offers, and what a server takes.
const (
	memorySlotBytes = 64 << 10
	memorySlots     = 128
	maxMemoryBytes  = 64 << 20 // of one connection
)

// memorySeals make sure that a mapping stays what it is: a file that got shorter would kill who looks at it.
const memorySeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// noSlot is where no slot is.
const noSlot = math.MaxUint32

// slots is memory that a client and a server on one host share, for the data of reads. It belongs to one connection.
type slots struct {
	bytes []byte // mapped
	each  int    // bytes of a slot
}

func (m *slots) count() int { return len(m.bytes) / m.each }

// at is the beginning of a slot.
func (m *slots) at(slot uint32, n uint32) []byte {
	from := int(slot) * m.each
	return m.bytes[from : from+int(n) : from+int(n)]
}

// unmap gives the memory back. Nobody may look at it any more.
func (m *slots) unmap() {
	_ = unix.Munmap(m.bytes) // it was mapped, so this cannot fail
	m.bytes = nil
}

// mapSlots maps a descriptor's memory if it has the form that was announced, and cannot lose it.
func mapSlots(fd int, each, count uint32) (slots, error) {
	size := uint64(each) * uint64(count)
	if each == 0 || each%uint32(os.Getpagesize()) != 0 || size == 0 || size > maxMemoryBytes {
		return slots{}, fmt.Errorf("%w: memory of %d slots of %d bytes", errMalformed, count, each)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&memorySeals != memorySeals {
		return slots{}, fmt.Errorf("%w: the memory is not sealed", errMalformed)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || uint64(st.Size) != size {
		return slots{}, fmt.Errorf("%w: the memory has %d bytes, %d were announced", errMalformed, st.Size, size)
	}
	p, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return slots{}, fmt.Errorf("map the memory: %w", err)
	}
	return slots{bytes: p, each: int(each)}, nil
}

// encodeMemory is the data of the option that offers memory; its descriptor travels beside.
func encodeMemory(m slots) []byte {
	return order.AppendUint32(order.AppendUint32(nil, uint32(m.each)), uint32(m.count()))
}
