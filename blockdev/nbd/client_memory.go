package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// loans is the client's side of its connection's memory: which slots are free. Requests that were completed have the
// others, and those that are under way.
type loans struct {
	slots

	// mu guards everything below. It is the innermost lock: Request.GiveBack takes it, with any other held.
	mu     sync.Mutex
	free   []uint32
	lent   int  // slots of completed requests
	ended  bool // the connection has ended: what is lent is the last
	givers []func()
}

// newLoans makes memory, and a descriptor of it for the server.
func newLoans() (*loans, *os.File, error) {
	fd, err := unix.MemfdCreate("lockstep-nbd", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("nbd: make memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	err = errors.Join(f.Truncate(memorySlots*memorySlotBytes), seal(fd))
	m := &loans{}
	if err == nil {
		m.slots, err = mapSlots(fd, memorySlotBytes, memorySlots)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("nbd: make memory: %w", err)
	}
	for i := uint32(memorySlots); i > 0; i-- {
		m.free = append(m.free, i-1)
	}
	for i := range uint32(memorySlots) { // once, because a closure for each read would be an allocation
		m.givers = append(m.givers, func() { m.back(i) })
	}
	return m, f, nil
}

func seal(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, memorySeals)
	return err
}

// take gives a slot for a read of n bytes, or noSlot.
func (m *loans) take(n uint32) uint32 {
	if m == nil || n > memorySlotBytes {
		return noSlot
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last := len(m.free) - 1
	if last < 0 {
		return noSlot
	}
	slot := m.free[last]
	m.free = m.free[:last]
	return slot
}

// put takes a slot back that was not lent.
func (m *loans) put(slot uint32) {
	m.mu.Lock()
	m.free = append(m.free, slot)
	m.mu.Unlock()
}

// lend gives the slot's memory to whoever the request belongs to, with what gives it back.
func (m *loans) lend(slot, n uint32) (data []byte, giveBack func()) {
	m.mu.Lock()
	m.lent++
	m.mu.Unlock()
	return m.at(slot, n), m.givers[slot]
}

// back is the end of a loan.
func (m *loans) back(slot uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free = append(m.free, slot)
	m.lent--
	m.endLocked()
}

// end is the end of the connection. The memory goes when nothing of it is lent any more.
func (m *loans) end() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	m.endLocked()
}

func (m *loans) endLocked() {
	if m.ended && m.lent == 0 && m.bytes != nil {
		m.unmap()
	}
}

// offerMemory makes memory for the server, if it can be there: on a unix socket, which may lead to another host all the
// same, but then the descriptor does not arrive. Without memory the data comes through the socket: no reason to fail.
func (h *clientHandshake) offerMemory() (*loans, *os.File) {
	if _, local := h.sock.nc.(*net.UnixConn); !h.lend || !local {
		return nil, nil
	}
	m, f, err := newLoans()
	if err != nil {
		return nil, nil
	}
	return m, f
}

// sendWith sends p, and a descriptor with it if there is one.
func (h *clientHandshake) sendWith(p []byte, f *os.File) error {
	nc, ok := h.sock.nc.(*net.UnixConn)
	if f == nil || !ok {
		_, err := h.sock.nc.Write(p)
		return err
	}
	n, _, err := nc.WriteMsgUnix(p, unix.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(p) {
		_, err = nc.Write(p[n:])
	}
	return err
}
