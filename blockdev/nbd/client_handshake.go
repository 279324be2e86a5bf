package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// clientHandshake is a client before transmission.
type clientHandshake struct {
	sock *socket
	in   inbuf
	tls  *clientTLS // nil: not encrypted

	fixed    bool // the server knows more options than EXPORT_NAME
	noZeroes bool

	structured bool   // reads are answered with structured replies
	context    uint32 // base:allocation, if extents
	extents    bool
}

// hello reads the server's greeting and answers it.
func (h *clientHandshake) hello() error {
	p, err := h.in.need(helloBytes)
	if err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	magic, second, flags := order.Uint64(p), order.Uint64(p[8:]), order.Uint16(p[16:])
	h.in.skip(helloBytes)
	if magic != protocol.NEGOTIATION_MAGIC_OLDSTYLE {
		return fmt.Errorf("%w: greeting %#016x is not that of an NBD server", ErrProtocol, magic)
	}
	if second != protocol.NEGOTIATION_MAGIC_OPTION {
		return fmt.Errorf("%w: the server knows the old handshake only", ErrProtocol)
	}
	var answer uint32
	if h.fixed = flags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE != 0; h.fixed {
		answer |= clientFlagFixedNewstyle
	}
	if h.noZeroes = flags&handshakeFlagNoZeroes != 0; h.noZeroes {
		answer |= clientFlagNoZeroes
	}
	if _, err = h.sock.nc.Write(order.AppendUint32(nil, answer)); err != nil || h.tls == nil {
		return err
	}
	return h.startTLS()
}

// startTLS encrypts what follows, or finds out that the server does not.
func (h *clientHandshake) startTLS() error {
	const option = optStartTLS
	var refusal *OptionError
	err := error(&OptionError{Option: option, Reply: protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, Text: "the server knows no options"})
	if h.fixed {
		if _, err := h.sock.nc.Write(appendOption(nil, option, nil)); err != nil {
			return err
		}
		_, _, err = h.readReply(option)
	}
	switch {
	case errors.As(err, &refusal) && h.tls.mode == TLSOn:
		return nil
	case err != nil:
		return fmt.Errorf("start TLS: %w", err)
	case len(h.in.buffered()) > 0:
		return fmt.Errorf("%w: plain text behind the acknowledgement of STARTTLS", ErrProtocol)
	}
	tc := tls.Client(h.sock.Conn, h.tls.config)
	if err := tc.Handshake(); err != nil { // the deadline is the connection's
		return fmt.Errorf("start TLS: %w", err)
	}
	h.sock.startTLS(tc)
	h.in.src = tc
	return nil
}

// enter negotiates an export: by GO, or EXPORT_NAME where the server does not know GO.
func (h *clientHandshake) enter(export string) (ExportInfo, error) {
	if err := h.hello(); err != nil {
		return ExportInfo{}, err
	}
	if h.fixed {
		if err := h.ask(export); err != nil {
			return ExportInfo{}, err
		}
		i, err := h.goTo(export)
		i.Extents = h.extents
		var refusal *OptionError
		if !errors.As(err, &refusal) || refusal.Reply != protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED {
			return i, err
		}
	}
	i, err := h.exportName(export)
	i.Extents = h.extents
	return i, err
}

// ask sends the options up to GO at once, for the sake of the round trips that a failover waits for, and reads the
// answers to all but the last. A server that refuses structured replies refuses the context too.
func (h *clientHandshake) ask(export string) error {
	p := appendOption(nil, optStructuredReply, nil)
	p = appendOption(p, optSetMetaContext, encodeMetaRequest(metaRequest{export, []string{allocationName}}))
	request := infoRequest{name: export, want: []uint16{protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE}}
	p = appendOption(p, protocol.NEGOTIATION_ID_OPTION_GO, encodeInfoRequest(request))
	if _, err := h.sock.nc.Write(p); err != nil {
		return err
	}
	var refusal *OptionError
	kind, _, err := h.readReply(optStructuredReply)
	switch {
	case errors.As(err, &refusal):
	case err != nil:
		return err
	case kind != protocol.NEGOTIATION_TYPE_REPLY_ACK:
		return fmt.Errorf("%w: reply type %d to STRUCTURED_REPLY", ErrProtocol, kind)
	default:
		h.structured = true
	}
	for range maxOptions { // replies; there is one context to select
		kind, data, err := h.readReply(optSetMetaContext)
		switch {
		case errors.As(err, &refusal):
			h.extents = false
			return nil
		case err != nil:
			return err
		case kind == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return nil
		case kind != repMetaContext:
			return fmt.Errorf("%w: reply type %d to SET_META_CONTEXT", ErrProtocol, kind)
		}
		id, name, err := decodeMetaContext(data)
		if err != nil {
			return err
		}
		if name == allocationName && h.structured {
			h.context, h.extents = id, true
		}
	}
	return fmt.Errorf("%w: too many replies to SET_META_CONTEXT", ErrProtocol)
}

// goTo reads the answer to GO.
func (h *clientHandshake) goTo(export string) (ExportInfo, error) {
	const option = protocol.NEGOTIATION_ID_OPTION_GO
	i := defaultInfo(export)
	told := false
	for range maxOptions { // replies; a server has four to give
		kind, data, err := h.readReply(option)
		if err != nil {
			return i, err
		}
		switch kind {
		case protocol.NEGOTIATION_TYPE_REPLY_INFO:
			export, err := decodeInfo(data, &i)
			if err != nil {
				return i, err
			}
			told = told || export
		case protocol.NEGOTIATION_TYPE_REPLY_ACK:
			if !told {
				return i, fmt.Errorf("%w: GO acknowledged without the export's size", ErrProtocol)
			}
			return i, checkInfo(i)
		default:
			return i, fmt.Errorf("%w: reply type %d to GO", ErrProtocol, kind)
		}
	}
	return i, fmt.Errorf("%w: too many replies to GO", ErrProtocol)
}

// exportName sends EXPORT_NAME, which has no error reply: the server hangs up if it will not.
func (h *clientHandshake) exportName(export string) (ExportInfo, error) {
	i := defaultInfo(export)
	if _, err := h.sock.nc.Write(appendOption(nil, optExportName, []byte(export))); err != nil {
		return i, err
	}
	n := exportNameReplyBytes
	if !h.noZeroes {
		n += exportNameZeroes
	}
	p, err := h.in.need(n)
	if err != nil {
		return i, fmt.Errorf("EXPORT_NAME: %w", err)
	}
	i.Size, i.Flags = order.Uint64(p), TransmissionFlags(order.Uint16(p[8:]))
	h.in.skip(n)
	return i, checkInfo(i)
}

// list sends LIST, and ABORT after it.
func (h *clientHandshake) list() ([]ExportInfo, error) {
	const option = protocol.NEGOTIATION_ID_OPTION_LIST
	if err := h.hello(); err != nil {
		return nil, err
	}
	if !h.fixed {
		return nil, fmt.Errorf("%w: the server cannot list its exports", ErrNotSupported)
	}
	if _, err := h.sock.nc.Write(appendOption(nil, option, nil)); err != nil {
		return nil, err
	}
	var exports []ExportInfo
	for len(exports) <= maxListedExports {
		kind, data, err := h.readReply(option)
		if err != nil {
			return nil, err
		}
		switch kind {
		case protocol.NEGOTIATION_TYPE_REPLY_SERVER:
			i, err := decodeServer(data)
			if err != nil {
				return nil, err
			}
			exports = append(exports, i)
		case protocol.NEGOTIATION_TYPE_REPLY_ACK:
			// A courtesy; nobody waits for the answer.
			h.sock.nc.Write(appendOption(nil, protocol.NEGOTIATION_ID_OPTION_ABORT, nil))
			return exports, nil
		default:
			return nil, fmt.Errorf("%w: reply type %d to LIST", ErrProtocol, kind)
		}
	}
	return nil, fmt.Errorf("%w: the server lists more than %d exports", ErrProtocol, maxListedExports)
}

// readReply reads one reply to an option. An error reply is returned as an *OptionError.
func (h *clientHandshake) readReply(option uint32) (kind uint32, data []byte, err error) {
	p, err := h.in.need(optionReplyBytes)
	if err != nil {
		return 0, nil, fmt.Errorf("read reply to option %d: %w", option, err)
	}
	magic, to, kind, length := order.Uint64(p), order.Uint32(p[8:]), order.Uint32(p[12:]), order.Uint32(p[16:])
	h.in.skip(optionReplyBytes)
	switch {
	case magic != protocol.NEGOTIATION_MAGIC_REPLY:
		return 0, nil, fmt.Errorf("%w: reply magic is %#016x", ErrProtocol, magic)
	case to != option:
		return 0, nil, fmt.Errorf("%w: reply to option %d, sent was %d", ErrProtocol, to, option)
	case length > maxReplyBytes:
		return 0, nil, fmt.Errorf("%w: reply of %d bytes, the limit is %d", ErrProtocol, length, maxReplyBytes)
	}
	data = make([]byte, length)
	if err := h.in.readFull(data); err != nil {
		return 0, nil, fmt.Errorf("read reply to option %d: %w", option, err)
	}
	if kind&(1<<31) != 0 {
		return kind, nil, &OptionError{Option: option, Reply: kind, Text: string(data)}
	}
	return kind, data, nil
}

// defaultInfo is what holds of an export whose server does not say.
func defaultInfo(export string) ExportInfo {
	return ExportInfo{Name: export, MinBlock: minBlockSize, PreferredBlock: preferredBlockSize, MaxPayload: maxBlockSize}
}

// checkInfo refuses what no server may say.
func checkInfo(i ExportInfo) error {
	if i.Flags&FlagHasFlags == 0 || i.Size > 1<<63-1 || i.MinBlock == 0 || i.MaxPayload < i.MinBlock {
		return fmt.Errorf("%w: size %d, flags %#x, block sizes %d to %d make no sense",
			ErrProtocol, i.Size, i.Flags, i.MinBlock, i.MaxPayload)
	}
	return nil
}
