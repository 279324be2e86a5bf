package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// handshake negotiates. It returns an error if the connection must be closed; nil with a session when transmission
// begins, and nil without one when the client has said goodbye.
func (c *conn) handshake() error {
	ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.opts.HandshakeTimeout)
	defer cancel()

	hello := order.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	hello = order.AppendUint64(hello, protocol.NEGOTIATION_MAGIC_OPTION)
	hello = order.AppendUint16(hello, protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE|handshakeFlagNoZeroes)
	if err := c.send(hello); err != nil {
		return err
	}
	p, err := c.in.need(clientFlagsBytes)
	if err != nil {
		return fmt.Errorf("nbd: read client flags: %w", err)
	}
	flags := order.Uint32(p)
	c.in.skip(clientFlagsBytes)
	if unknown := flags &^ (clientFlagFixedNewstyle | clientFlagNoZeroes); unknown != 0 {
		return fmt.Errorf("nbd: protocol error: unknown client flags %#x", unknown)
	}
	c.noZeroes, c.fixed = flags&clientFlagNoZeroes != 0, flags&clientFlagFixedNewstyle != 0

	for range maxOptions {
		option, data, err := c.readOption()
		tooBig := errors.Is(err, errTooBig)
		if err != nil && !tooBig {
			return err
		}
		if done, err := c.answer(ctx, option, data, tooBig); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("nbd: client sent %d options without coming to an end", maxOptions)
}

// errTooBig says that an option's data was dropped.
var errTooBig = errors.New("option with too much data")

// readOption receives an option with its data. Too much of it is dropped, as far as that is still reasonable.
func (c *conn) readOption() (option uint32, data []byte, err error) {
	p, err := c.in.need(optionHeaderBytes)
	if err != nil {
		return 0, nil, fmt.Errorf("nbd: read option: %w", err)
	}
	magic, option, length := order.Uint64(p), order.Uint32(p[8:]), order.Uint32(p[12:])
	c.in.skip(optionHeaderBytes)
	if magic != protocol.NEGOTIATION_MAGIC_OPTION {
		return 0, nil, fmt.Errorf("nbd: protocol error: option magic is %#016x", magic)
	}
	switch {
	case length > maxDroppedBytes || length > maxOptionBytes && option == optExportName: // which has no error reply
		return 0, nil, fmt.Errorf("nbd: option %d has %d bytes, the limit is %d", option, length, maxOptionBytes)
	case length > maxOptionBytes:
		if err := c.in.discard(uint64(length)); err != nil {
			return 0, nil, fmt.Errorf("nbd: read option %d: %w", option, err)
		}
		return option, nil, errTooBig
	}
	data = make([]byte, length)
	if err := c.in.readFull(data); err != nil {
		return 0, nil, fmt.Errorf("nbd: read option %d: %w", option, err)
	}
	return option, data, nil
}

// answer does what an option asks for, unless its data was tooBig. done means that the handshake is over.
func (c *conn) answer(ctx context.Context, option uint32, data []byte, tooBig bool) (done bool, err error) {
	if c.srv.isStopping() && option != protocol.NEGOTIATION_ID_OPTION_ABORT && option != optExportName {
		return false, c.reply(option, repErrShutdown, "the server is shutting down")
	}
	if c.srv.opts.TLS.Mode == TLSRequire && !c.encrypted {
		switch option {
		case optExportName: // has no error reply
			return false, errors.New("nbd: EXPORT_NAME without TLS, which is required here")
		case optStartTLS, protocol.NEGOTIATION_ID_OPTION_ABORT:
		default:
			return false, c.reply(option, repErrTLSReqd, "begin with STARTTLS: this server serves encrypted connections only")
		}
	}
	if tooBig {
		return false, c.reply(option, repErrTooBig, "the option has too much data")
	}
	switch option {
	case optStartTLS:
		return false, c.startTLS(ctx, data)
	case optExportName:
		return true, c.answerExportName(ctx, data)
	case protocol.NEGOTIATION_ID_OPTION_ABORT:
		c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ACK, "") // the client need not wait for it
		return true, nil
	case protocol.NEGOTIATION_ID_OPTION_LIST:
		return false, c.answerList(ctx, data)
	case protocol.NEGOTIATION_ID_OPTION_INFO, protocol.NEGOTIATION_ID_OPTION_GO:
		return c.answerInfo(ctx, option, data)
	case optListMetaContext, optSetMetaContext:
		return false, c.answerMeta(ctx, option, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, c.reply(option, repErrInvalid, "this option has no data")
		}
		c.structured = true
		return false, c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ACK, "")
	}
	return false, c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "")
}

// startTLS encrypts the connection. What was negotiated in plain text is forgotten.
func (c *conn) startTLS(ctx context.Context, data []byte) error {
	const option = optStartTLS
	switch {
	case c.srv.certificates == nil || !c.fixed:
		return c.reply(option, repErrPolicy, "this server does not encrypt connections")
	case c.encrypted:
		return c.reply(option, repErrInvalid, "the connection is encrypted already")
	case len(data) != 0:
		return c.reply(option, repErrInvalid, "this option has no data")
	}
	config, err := c.srv.certificates.current()
	if err != nil {
		return c.reply(option, repErrPlatform, "the server's certificates cannot be read")
	}
	if err := c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ACK, ""); err != nil {
		return err
	}
	if len(c.in.buffered()) > 0 { // it could be an option that somebody in between has added
		return errors.New("nbd: protocol error: plain text behind STARTTLS")
	}
	tc := tls.Server(c.sock.Conn, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("nbd: start TLS: %w", err)
	}
	c.sock.startTLS(tc)
	c.in.src = tc
	c.encrypted, c.structured, c.meta = true, false, nil
	return nil
}

// answerExportName attaches or fails: this option has no error reply.
func (c *conn) answerExportName(ctx context.Context, data []byte) error {
	name, err := decodeString(data)
	if err != nil {
		return fmt.Errorf("nbd: EXPORT_NAME: %w", err)
	}
	if err := c.open(ctx, name); err != nil {
		return fmt.Errorf("nbd: EXPORT_NAME %q: %w", name, err)
	}
	if err := c.attach(ctx); err != nil {
		return fmt.Errorf("nbd: EXPORT_NAME %q: attach: %w", name, err)
	}
	p := order.AppendUint64(nil, c.info.Size)
	p = order.AppendUint16(p, uint16(c.info.Flags))
	if !c.noZeroes {
		p = append(p, make([]byte, exportNameZeroes)...)
	}
	return c.sendAttached(p)
}

func (c *conn) answerList(ctx context.Context, data []byte) error {
	const option = protocol.NEGOTIATION_ID_OPTION_LIST
	if len(data) != 0 {
		return c.reply(option, repErrInvalid, "this option has no data")
	}
	exports, err := c.srv.opts.Exporter.List(ctx)
	if err != nil {
		return c.reply(option, repErrPolicy, err.Error())
	}
	var p []byte
	for _, e := range exports {
		p = appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_SERVER, encodeServer(e))
	}
	return c.send(appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
}

// answerInfo answers INFO and GO, which differ in what comes after.
func (c *conn) answerInfo(ctx context.Context, option uint32, data []byte) (done bool, err error) {
	r, err := decodeInfoRequest(data)
	if err != nil {
		return false, c.reply(option, repErrInvalid, err.Error())
	}
	err = c.open(ctx, r.name)
	attach := err == nil && option == protocol.NEGOTIATION_ID_OPTION_GO
	if attach {
		err = c.attach(ctx)
	}
	if err != nil {
		return false, c.refuseOpen(option, r.name, err)
	}
	p := appendInfos(nil, option, r, c.info)
	p = appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	if attach {
		return true, c.sendAttached(p)
	}
	return false, c.send(p)
}

// answerMeta answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (c *conn) answerMeta(ctx context.Context, option uint32, data []byte) error {
	if option == optSetMetaContext {
		c.meta = nil // also when this one fails
	}
	if !c.structured {
		return c.reply(option, repErrInvalid, "negotiate structured replies first")
	}
	r, err := decodeMetaRequest(data)
	if err != nil {
		return c.reply(option, repErrInvalid, err.Error())
	}
	if err := c.open(ctx, r.name); err != nil {
		return c.refuseOpen(option, r.name, err)
	}
	var p []byte
	if r.selectsAllocation(option) {
		id := uint32(0) // means nothing in a list
		if option == optSetMetaContext {
			id, c.meta = allocationID, &r.name
		}
		p = appendOptionReply(p, option, repMetaContext, encodeMetaContext(id))
	}
	return c.send(appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
}

// refuseOpen tells the client why it does not get an export, or returns the error that is to close the connection.
func (c *conn) refuseOpen(option uint32, name string, err error) error {
	var moved *blockdev.MovedError
	switch {
	case errors.As(err, &moved):
		_ = c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, moved.To) // the connection ends in any case
		return fmt.Errorf("nbd: open %q: %w", name, err)
	case errors.Is(err, ErrUnknownExport):
		return c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, fmt.Sprintf("there is no export %q here", name))
	case errors.Is(err, blockdev.ErrNotPrimary), errors.Is(err, blockdev.ErrSessionClosed):
		return fmt.Errorf("nbd: open %q: %w", name, err) // N4
	}
	return c.reply(option, repErrPolicy, err.Error())
}

// open resolves a name.
func (c *conn) open(ctx context.Context, name string) error {
	e, err := c.srv.opts.Exporter.Open(ctx, name)
	if err != nil {
		return err
	}
	c.export, c.info = e, e.Info()
	if c.structured {
		c.info.Flags |= FlagSendDF
	}
	c.extents = c.meta != nil && *c.meta == name
	return nil
}

// sendAttached tells the client that it is attached (N7).
func (c *conn) sendAttached(p []byte) error {
	err := c.send(p)
	if err != nil {
		c.abandon(err)
	}
	return err
}

// reply answers an option with a reply whose data is a text for people, or nothing.
func (c *conn) reply(option, kind uint32, text string) error {
	if len(text) > maxStringBytes {
		text = text[:maxStringBytes]
	}
	return c.send(appendOptionReply(nil, option, kind, []byte(text)))
}

// send writes during the handshake, when nobody else does; the connection's deadline bounds it.
func (c *conn) send(p []byte) error {
	if _, err := c.sock.nc.Write(p); err != nil {
		return fmt.Errorf("nbd: handshake: %w", err)
	}
	return nil
}
