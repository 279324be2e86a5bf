package nbd

import (
	"fmt"

	"lockstep/blockdev"
)

// The only metadata context there is here: which parts of the disk are holes. Its number is the server's to choose.
const (
	allocationName    = "base:allocation"
	allocationID      = uint32(1)
	allocationPattern = "base:" // a query of LIST_META_CONTEXT: all of this namespace
)

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

// decodeMetaRequest reads name length (4), name, count (4), and count queries of length (4) and text; and nothing else.
func decodeMetaRequest(p []byte) (r metaRequest, err error) {
	text := func() (s string) {
		if err != nil {
			return ""
		}
		if len(p) < 4 || uint64(order.Uint32(p)) > uint64(len(p)-4) {
			err = fmt.Errorf("%w: a text that is longer than the option", errMalformed)
			return ""
		}
		n := order.Uint32(p)
		s, err = decodeString(p[4 : 4+n])
		p = p[4+n:]
		return s
	}
	r.name = text()
	if err == nil && len(p) < 4 {
		err = fmt.Errorf("%w: it ends behind the export's name", errMalformed)
	}
	if err != nil {
		return metaRequest{}, err
	}
	count := order.Uint32(p)
	p = p[4:]
	if uint64(count)*4 > uint64(len(p)) {
		return metaRequest{}, fmt.Errorf("%w: %d queries in %d bytes", errMalformed, count, len(p))
	}
	for range count {
		r.queries = append(r.queries, text())
	}
	if err == nil && len(p) != 0 {
		err = fmt.Errorf("%w: %d bytes behind the last query", errMalformed, len(p))
	}
	if err != nil {
		return metaRequest{}, err
	}
	return r, nil
}

// encodeMetaRequest is the inverse.
func encodeMetaRequest(r metaRequest) []byte {
	p := order.AppendUint32(nil, uint32(len(r.name)))
	p = append(p, r.name...)
	p = order.AppendUint32(p, uint32(len(r.queries)))
	for _, q := range r.queries {
		p = order.AppendUint32(p, uint32(len(q)))
		p = append(p, q...)
	}
	return p
}

// selectsAllocation tells whether the queries are for the context that there is. Others are for namespaces or leaves
// that are not known here, and ignored as the specification asks.
func (r metaRequest) selectsAllocation(option uint32) bool {
	if option == optListMetaContext && len(r.queries) == 0 {
		return true
	}
	for _, q := range r.queries {
		if q == allocationName || option == optListMetaContext && q == allocationPattern {
			return true
		}
	}
	return false
}

// encodeMetaContext is the data of a META_CONTEXT reply: context (4), name.
func encodeMetaContext(id uint32) []byte {
	return append(order.AppendUint32(nil, id), allocationName...)
}

// decodeMetaContext is the inverse, in the client.
func decodeMetaContext(p []byte) (id uint32, name string, err error) {
	if len(p) < 4 {
		return 0, "", fmt.Errorf("%w: a metadata context in %d bytes", ErrProtocol, len(p))
	}
	return order.Uint32(p), string(p[4:]), nil
}

// encodeDescriptors writes extents into p, which has room for them.
func encodeDescriptors(p []byte, extents []blockdev.Extent) {
	for i, e := range extents {
		order.PutUint32(p[i*descriptorBytes:], e.Length)
		order.PutUint32(p[i*descriptorBytes+4:], uint32(e.State))
	}
}
