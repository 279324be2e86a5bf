package main

import (
	"context"
	"errors"
	"net"
	"strings"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// probeListens tells whether somebody listens at an address.
func probeListens(ctx context.Context, listen string) error {
	network, addr := "tcp", dialable(listen)
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		network, addr = "unix", path
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// probeExport does what a client does first: it negotiates the export and reads a block. The gateway answers the read only
// when the primary did.
func probeExport(ctx context.Context, listen, export string) error {
	ctx, cancel := context.WithTimeout(ctx, devProbePatience)
	defer cancel()
	addr := listen
	if !strings.HasPrefix(addr, "unix:") {
		addr = dialable(listen)
	}
	conn, err := nbd.Dial(ctx, addr, nbd.ClientOptions{Export: export})
	if err != nil {
		return err
	}
	defer conn.Close()
	answer := make(probeAnswer, 2) // the result, and the end of the connection
	conn.Start(answer)
	read := &blockdev.Request{Op: blockdev.OpRead, Length: blockdev.BlockSize, Data: make([]byte, blockdev.BlockSize)}
	if err := conn.Submit([]*blockdev.Request{read}); err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// probeAnswer gets the result of a probe's one request, or the end of its connection.
type probeAnswer chan error

func (a probeAnswer) Complete(done []*blockdev.Request) { a <- done[0].Err }

func (a probeAnswer) Closed(err error) {
	if err == nil {
		err = errors.New("connection closed")
	}
	a <- err
}
