package nbd

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"lockstep/blockdev"
)

// zeroChunkBytes is how many zeroes go into a backend with one call.
const zeroChunkBytes = 64 << 10

// completeBytes is how much data may be waiting for its replies: they are sent while it is in the processor's cache.
const completeBytes = 256 << 10

// backendDevice is a go-nbd backend as a Device. It keeps no sessions apart and fences nobody.
type backendDevice struct {
	backend backend.Backend
	size    uint64
	zeroes  []byte
}

// NewBackendDevice serves a go-nbd backend as a Device: in memory, for tests, or a plain file without replicas. Each
// request is done inside Submit. The size is rounded down to whole blocks. The backend sees no request past its end,
// where some of go-nbd's own panic or deadlock.
func NewBackendDevice(b backend.Backend) (blockdev.Device, error) {
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("nbd: size of backend: %w", err)
	}
	if size < 0 {
		return nil, fmt.Errorf("nbd: size of backend is %d", size)
	}
	return &backendDevice{
		backend: b,
		size:    uint64(size) / blockdev.BlockSize * blockdev.BlockSize,
		zeroes:  make([]byte, zeroChunkBytes),
	}, nil
}

func (d *backendDevice) Geometry() blockdev.Geometry { return blockdev.Geometry{Size: d.size} }

func (d *backendDevice) Attach(_ context.Context, _ blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	return &backendSession{device: d, client: c}, nil
}

// backendSession does the requests of one client.
type backendSession struct {
	device *backendDevice
	client blockdev.Client
	closed atomic.Bool
}

// Submit does the requests one by one and completes them together, a cache full of data at a time. As only one goroutine
// submits, and it is the one that closes the session, there is nothing under way when Close returns.
func (s *backendSession) Submit(burst []*blockdev.Request) {
	if s.closed.Load() {
		return
	}
	from, bytes := 0, 0
	for i, r := range burst {
		r.Err = s.device.do(r)
		if bytes += len(r.Data); bytes >= completeBytes {
			s.client.Complete(burst[from : i+1])
			from, bytes = i+1, 0
		}
	}
	if from < len(burst) {
		s.client.Complete(burst[from:])
	}
}

func (s *backendSession) Close() { s.closed.Store(true) }

// do runs one request.
func (d *backendDevice) do(r *blockdev.Request) error {
	if r.Op != blockdev.OpFlush && (r.Offset > d.size || uint64(r.Length) > d.size-r.Offset) {
		return blockdev.ErrOutOfRange
	}
	var err error
	switch r.Op {
	case blockdev.OpRead:
		_, err = d.backend.ReadAt(r.Data, int64(r.Offset))
	case blockdev.OpWrite:
		_, err = d.backend.WriteAt(r.Data, int64(r.Offset))
	case blockdev.OpTrim, blockdev.OpWriteZeroes:
		err = d.zero(int64(r.Offset), int(r.Length))
	case blockdev.OpCache:
	case blockdev.OpExtents:
		r.AddExtent(r.Length, 0) // go-nbd's backends do not tell
	case blockdev.OpFlush:
		err = d.backend.Sync()
	default:
		return blockdev.ErrInvalid
	}
	if err == nil && r.Flags&blockdev.FlagFUA != 0 {
		err = d.backend.Sync()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", blockdev.ErrIO, err)
	}
	return nil
}

func (d *backendDevice) zero(off int64, n int) error {
	for n > 0 {
		k := min(n, len(d.zeroes))
		if _, err := d.backend.WriteAt(d.zeroes[:k], off); err != nil {
			return err
		}
		off, n = off+int64(k), n-k
	}
	return nil
}
