package nbd

import (
	"context"
	"fmt"
	"sync"

	"lockstep/blockdev"
)

// diskExtents is how many extents one call can give.
const diskExtents = 1 << 10

// Disk is a Conn for tools and tests: each call does one request and waits for it. Many goroutines may call at once.
// A read or write has at most MaxPayload bytes of Info.
type Disk struct {
	conn *Conn

	// mu guards everything below.
	mu     sync.Mutex
	calls  []*diskCall // by Request.Tag
	free   []*diskCall
	err    error         // why the connection ended
	closed chan struct{} // it ended
}

// diskCall is a call under way; it is used again by later ones.
type diskCall struct {
	req  blockdev.Request
	busy bool
	done chan error // holds one result
}

// OpenDisk dials a server.
func OpenDisk(ctx context.Context, addr string, opts ClientOptions) (*Disk, error) {
	c, err := Dial(ctx, addr, opts)
	if err != nil {
		return nil, err
	}
	return NewDisk(c), nil
}

// NewDisk takes a Conn over, which was not started.
func NewDisk(c *Conn) *Disk {
	d := &Disk{conn: c, closed: make(chan struct{})}
	c.Start((*diskHandler)(d))
	return d
}

// Info is what the server said of the export.
func (d *Disk) Info() ExportInfo { return d.conn.Info() }

// Size is the disk's size in bytes.
func (d *Disk) Size() uint64 { return d.conn.Info().Size }

// ReadAt fills p; it never reads less without an error.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	return d.transfer(blockdev.OpRead, p, off)
}

// WriteAt writes p as one request.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	return d.transfer(blockdev.OpWrite, p, off)
}

// Flush makes completed writes stable.
func (d *Disk) Flush() error { return d.do(blockdev.OpFlush, 0, 0, 0, nil) }

// Trim gives a range back.
func (d *Disk) Trim(off uint64, n uint32) error { return d.do(blockdev.OpTrim, 0, off, n, nil) }

// WriteZeroes makes a range read as zeroes; flags may have blockdev.FlagFUA and blockdev.FlagNoHole.
func (d *Disk) WriteZeroes(off uint64, n uint32, flags blockdev.Flags) error {
	return d.do(blockdev.OpWriteZeroes, flags, off, n, nil)
}

// Extents says how the first n bytes from off on are kept; it may tell of less, but tells of something.
func (d *Disk) Extents(off uint64, n uint32) ([]blockdev.Extent, error) {
	room := make([]blockdev.Extent, 0, diskExtents)
	return d.run(blockdev.Request{Op: blockdev.OpExtents, Offset: off, Length: n, Extents: room})
}

// Close ends the connection and returns when it has ended.
func (d *Disk) Close() error {
	err := d.conn.Close()
	<-d.closed
	return err
}

func (d *Disk) transfer(op blockdev.Op, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if off < 0 || len(p) > int(d.conn.Info().MaxPayload) {
		return 0, fmt.Errorf("nbd: %v of %d bytes at %d: %w", op, len(p), off, blockdev.ErrInvalid)
	}
	if err := d.do(op, 0, uint64(off), uint32(len(p)), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// do runs one request.
func (d *Disk) do(op blockdev.Op, flags blockdev.Flags, off uint64, n uint32, data []byte) error {
	_, err := d.run(blockdev.Request{Op: op, Flags: flags, Offset: off, Length: n, Data: data})
	return err
}

func (d *Disk) run(q blockdev.Request) (extents []blockdev.Extent, err error) {
	call, err := d.begin()
	if err == nil {
		r := &call.req
		r.Op, r.Flags, r.Offset, r.Length, r.Data, r.Extents, r.Err = q.Op, q.Flags, q.Offset, q.Length, q.Data, q.Extents, nil
		if err = d.conn.Submit([]*blockdev.Request{r}); err == nil {
			err = <-call.done
		}
		extents = r.Extents
		d.mu.Lock()
		call.busy, r.Data, r.Extents = false, nil, nil
		d.free = append(d.free, call)
		d.mu.Unlock()
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: %v of %d bytes at %d: %w", q.Op, q.Length, q.Offset, err)
	}
	return extents, nil
}

func (d *Disk) begin() (*diskCall, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	var call *diskCall
	if last := len(d.free) - 1; last >= 0 {
		call = d.free[last]
		d.free = d.free[:last]
	} else {
		call = &diskCall{done: make(chan error, 1)}
		call.req.Tag = uint64(len(d.calls))
		d.calls = append(d.calls, call)
	}
	call.busy = true
	return call, nil
}

// diskHandler is a Disk as its Conn sees it.
type diskHandler Disk

func (h *diskHandler) Complete(done []*blockdev.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range done {
		h.finishLocked(h.calls[r.Tag], r.Err)
	}
}

func (h *diskHandler) Closed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
	for _, call := range h.calls {
		h.finishLocked(call, err)
	}
	close(h.closed)
}

// finishLocked wakes a call, once.
func (h *diskHandler) finishLocked(call *diskCall, err error) {
	if call.busy {
		call.busy = false
		call.done <- err
	}
}
