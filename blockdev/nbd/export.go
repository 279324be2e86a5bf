package nbd

import (
	"context"
	"errors"

	"lockstep/blockdev"
)

// ErrUnknownExport says that no export has the name that a client asked for. An Exporter returns it, and so does Dial.
var ErrUnknownExport = errors.New("nbd: unknown export")

// Export is a device under a name.
type Export struct {
	Name        string // canonical; "" is allowed
	Description string // for people
	Device      blockdev.Device
	Session     blockdev.SessionID // what the client's attachment is called, for fencing; zero for an anonymous one
	ReadOnly    bool               // whatever the device says
	// FastZero says that the device writes zeroes faster than data. Without it, a request that insists on speed gets
	// ENOTSUP, and the client knows that it should write its zeroes together with its data.
	FastZero bool
	// SingleConn tells clients not to open further connections: the device takes one.
	SingleConn bool
}

// Info is what a client is told of the export when structured replies are not negotiated.
func (e Export) Info() ExportInfo {
	g := e.Device.Geometry()
	// Multi-conn is the Device's promise: one history for all sessions, a flush covers what was completed on any.
	flags := FlagHasFlags | FlagSendFlush | FlagSendFUA | FlagCanMultiConn | FlagSendCache
	if e.ReadOnly || g.ReadOnly {
		flags |= FlagReadOnly
	} else {
		flags |= FlagSendTrim | FlagSendWriteZeroes | FlagSendFastZero
	}
	if e.SingleConn {
		flags &^= FlagCanMultiConn
	}
	return ExportInfo{
		Name: e.Name, Description: e.Description, Size: g.Size, Flags: flags,
		MinBlock: minBlockSize, PreferredBlock: preferredBlockSize, MaxPayload: maxBlockSize,
	}
}

// ExportInfo describes an export to a client.
type ExportInfo struct {
	Name        string
	Description string
	Size        uint64 // bytes; a List does not tell
	Flags       TransmissionFlags

	// Block sizes in bytes: a request's offset and length are multiples of MinBlock, it is efficient in multiples of
	// PreferredBlock, and has at most MaxPayload bytes of data.
	MinBlock, PreferredBlock, MaxPayload uint32

	// Extents says that the connection carries blockdev.OpExtents; a Conn's only.
	Extents bool
}

// ReadOnly tells whether the server refuses to change the disk.
func (i ExportInfo) ReadOnly() bool { return i.Flags&FlagReadOnly != 0 }

// Exporter says what a server exports. Its methods are called by many goroutines at once; ctx ends when the handshake
// takes too long or the server closes.
type Exporter interface {
	// List gives the exports that clients may know of, for NBD_OPT_LIST.
	List(ctx context.Context) ([]ExportInfo, error)
	// Open resolves a name that a client sent; "" is the default export, and it is for the Exporter to say which that
	// is. An error that wraps ErrUnknownExport is told to the client as such; one that wraps blockdev.ErrNotPrimary or
	// blockdev.ErrSessionClosed closes the connection without a word; any other is a refusal that carries its text.
	Open(ctx context.Context, name string) (Export, error)
}
