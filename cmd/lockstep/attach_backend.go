package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"lockstep/blockdev/kernel"
	"lockstep/blockdev/nbd"
	"lockstep/replication/gateway"
	"lockstep/viewsvc"
)

// volumeBackend is the storage behind a device: a gateway in this process with one client, the kernel. Each life of the
// device's socket has a gateway of its own, whose session is the next generation: the primary fences what the former one
// has sent before it lets this one in (K5, and G6 of replication/gateway).
type volumeBackend struct {
	gateway *gateway.Gateway
	export  nbd.Export
	admit   func() error // called when the client was let in: whether it may go on

	attached chan struct{} // closed when the client was let in
	grown    chan struct{} // gets a value when the volume has become larger
	letIn    func()        // closes attached
	ended    chan error    // what ServeTransmission returned
	close    func()

	// mu guards everything below.
	mu   sync.Mutex
	gone error // why the disk is not there any more
	left error // how the connection ended; nil: with a goodbye
}

// openVolume starts the gateway, whose events go on to next, and finds the volume.
func openVolume(ctx context.Context, a *attachment, o gateway.Options, as gateway.AttachOptions, next func(gateway.Event)) (*volumeBackend, error) {
	b := &volumeBackend{attached: make(chan struct{}), grown: make(chan struct{}, 1), ended: make(chan error, 1), left: io.EOF}
	b.letIn = sync.OnceFunc(func() { close(b.attached) })
	o.OnEvent = func(e gateway.Event) {
		b.hear(e)
		next(e)
	}
	g, err := gateway.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	b.gateway = g
	b.close = sync.OnceFunc(func() { _ = g.Close(context.Background()) }) // requests that it gives up are repeated by the kernel
	if b.export, err = g.Export(ctx, a.Volume, as); err != nil {
		b.close()
		return nil, b.explain(err, o.View)
	}
	b.export.ReadOnly = b.export.ReadOnly || a.ReadOnly
	b.admit = func() error { return a.admitted(ctx) }
	return b, nil
}

// explain tells the end of a disk from trouble that passes, and says what to do.
func (b *volumeBackend) explain(err error, servers []string) error {
	switch {
	case errors.Is(err, nbd.ErrUnknownExport):
		return &goneError{withHint(err, "see `lockstep volume list`")}
	case errors.Is(err, viewsvc.ErrNoLeader), errors.Is(err, context.DeadlineExceeded):
		return explain(fmt.Errorf("%w (%w)", err, viewsvc.ErrNoLeader), servers)
	}
	return err
}

// hear takes an event of the gateway in.
func (b *volumeBackend) hear(e gateway.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e.Kind == gateway.EventGone:
		b.gone = &goneError{fmt.Errorf("volume %s was deleted", e.Volume)}
	case e.Kind == gateway.EventEvicted:
		b.gone = &goneError{e.Err}
	case e.Kind == gateway.EventGrown:
		select {
		case b.grown <- struct{}{}:
		default: // one hint is there already
		}
	case e.Kind == gateway.EventClient && e.Client.Kind == nbd.EventAttached:
		b.letIn()
	case e.Kind == gateway.EventClient && e.Client.Kind == nbd.EventDetached:
		b.left = e.Client.Err
	}
}

// Disk implements kernel.Backend.
func (b *volumeBackend) Disk() (uint64, nbd.TransmissionFlags) {
	info := b.export.Info()
	return info.Size, info.Flags
}

// Grown implements kernel.Backend.
func (b *volumeBackend) Grown() <-chan struct{} { return b.grown }

// Start implements kernel.Backend.
func (b *volumeBackend) Start(conn net.Conn) error {
	go func() { b.ended <- b.gateway.Server().ServeTransmission(conn, b.export) }() // ends by close
	select {
	case <-b.attached:
		if err := b.admit(); err != nil {
			b.close()
			return err
		}
		return nil
	case err := <-b.ended:
		b.ended <- err
		if errors.Is(err, viewsvc.ErrClaimed) { // it has another owner: a device that waits here is out of date
			err = &goneError{withHint(err, "detach it there, or take it over: `lockstep attach --take-over`")}
		}
		return err
	}
}

// Wait implements kernel.Backend.
func (b *volumeBackend) Wait() error {
	err := <-b.ended
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.gone != nil:
		return b.gone
	case err != nil:
		return err
	case b.left == nil:
		return kernel.ErrGoodbye
	}
	return b.left
}

// goneError is the end of a disk: a kernel.ErrGone with other words.
type goneError struct{ err error }

func (e *goneError) Error() string        { return e.err.Error() }
func (e *goneError) Unwrap() error        { return e.err }
func (e *goneError) Is(target error) bool { return target == kernel.ErrGone }

// Close implements kernel.Backend.
func (b *volumeBackend) Close() { b.close() }
