// Package exportname says where a gateway meets a node, and how a gateway tells a node, inside an NBD export name, on
// whose behalf it connects.
//
// NBD has no field for a client's identity, and a primary needs one: a connection must fence the earlier ones of
// the same client before it is served, or a request left unread in an old socket is carried out after its own
// replay. The export name is the only text that a client may choose, so the identity rides there:
//
//	NAME                                            an anonymous client: never fenced, never fences
//	NAME?session=SESSION&generation=N[&KEY=VALUE…]  attachment N of the client SESSION
//
//	NAME         1..MaxVolumeBytes bytes, without '?'
//	SESSION      1..64 bytes of A-Z a-z 0-9 . _ -
//	N            a decimal uint64, without leading zeroes
//
// The optional keys come in this order, each at most once:
//
//	era=N        when the client first attached (viewsvc.Claim); a decimal uint64, not 0
//	exclusive=1  the client has the volume to itself
//	numbered=1   a request's NBD cookie is its number (blockdev.RequestID), and says whether it was sent before
//	numbers=ID   so it is, and the numbers are those of the space ID, not of SESSION; as SESSION, and another than it
//
// The last two exclude each other. There is one spelling for each identity: Format(Parse(s)) == s, and the other way
// round. Gateways and nodes of different versions meet here; the syntax is part of the protocol, never change it.
//
// The package is a leaf, so that nodes and gateways can share it without importing each other.
package exportname

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"lockstep/blockdev"
)

// Limits of the parts of a name. NBD allows 4096 bytes for the whole.
const (
	MaxVolumeBytes  = 1024
	MaxSessionBytes = 64
)

// ErrMalformed is wrapped by every error of Parse.
var ErrMalformed = errors.New("malformed export name")

const (
	sessionKey    = "?session="
	generationKey = "&generation="
	eraKey        = "&era="
	exclusiveKey  = "&exclusive=1"
	numberedKey   = "&numbered=1"
	numbersKey    = "&numbers="
)

// Format is the export name by which the client id asks for a volume. It panics if the parts break the limits
// above: both come from the caller's own program, checked when they were made.
func Format(volume string, id blockdev.SessionID) string {
	if err := checkVolume(volume); err != nil {
		panic(err)
	}
	if id == (blockdev.SessionID{}) {
		return volume
	}
	if err := CheckSession(id.Name); err != nil {
		panic(err)
	}
	name := volume + sessionKey + id.Name + generationKey + strconv.FormatUint(id.Generation, 10)
	if id.Era != 0 {
		name += eraKey + strconv.FormatUint(id.Era, 10)
	}
	if id.Exclusive {
		name += exclusiveKey
	}
	switch id.Numbers {
	case "":
		return name
	case id.Name:
		return name + numberedKey
	}
	if err := CheckSession(id.Numbers); err != nil {
		panic(err)
	}
	return name + numbersKey + id.Numbers
}

// Parse splits the export name that a client asked for. The name comes from the network: every byte is checked.
func Parse(name string) (volume string, id blockdev.SessionID, err error) {
	volume, identity, identified := strings.Cut(name, "?")
	if err := checkVolume(volume); err != nil {
		return "", blockdev.SessionID{}, err
	}
	if !identified {
		return volume, blockdev.SessionID{}, nil
	}
	if id, err = parseIdentity(identity); err != nil {
		return "", blockdev.SessionID{}, err
	}
	return volume, id, nil
}

// parseIdentity reads what is behind the '?'.
func parseIdentity(s string) (id blockdev.SessionID, err error) {
	s, ok := strings.CutPrefix(s, sessionKey[1:])
	session, s, ok2 := strings.Cut(s, generationKey)
	if !ok || !ok2 {
		return blockdev.SessionID{}, fmt.Errorf("%w: want NAME or NAME?session=ID&generation=N", ErrMalformed)
	}
	if err := CheckSession(session); err != nil {
		return blockdev.SessionID{}, err
	}
	id.Name = session
	if s, id.Numbers, err = parseNumbers(s, session); err != nil {
		return blockdev.SessionID{}, err
	}
	s, id.Exclusive = strings.CutSuffix(s, exclusiveKey)
	generation, era, dated := strings.Cut(s, eraKey)
	if id.Generation, err = parseNumber(generation); err != nil {
		return blockdev.SessionID{}, err
	}
	if !dated {
		return id, nil
	}
	if id.Era, err = parseNumber(era); err == nil && id.Era == 0 {
		err = fmt.Errorf("%w: era 0 is left out", ErrMalformed)
	}
	if err != nil {
		return blockdev.SessionID{}, err
	}
	return id, nil
}

// parseNumbers takes the last key off, if it says where the session's numbers are.
func parseNumbers(s, session string) (rest, numbers string, err error) {
	if rest, ok := strings.CutSuffix(s, numberedKey); ok {
		return rest, session, nil
	}
	rest, numbers, ok := strings.Cut(s, numbersKey)
	if !ok {
		return s, "", nil
	}
	if numbers == session {
		return "", "", fmt.Errorf("%w: numbers of the session's own are told by numbered=1", ErrMalformed)
	}
	return rest, numbers, CheckSession(numbers)
}

func parseNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%w: %q is not a plain decimal number", ErrMalformed, s)
	}
	return n, nil
}

func checkVolume(volume string) error {
	if volume == "" || len(volume) > MaxVolumeBytes || strings.Contains(volume, "?") {
		return fmt.Errorf("%w: a volume's name has 1 to %d bytes and no '?'", ErrMalformed, MaxVolumeBytes)
	}
	return nil
}

// CheckSession tells what is wrong with a session's name.
func CheckSession(session string) error {
	if session == "" || len(session) > MaxSessionBytes {
		return fmt.Errorf("%w: a session's name has 1 to %d bytes", ErrMalformed, MaxSessionBytes)
	}
	for _, c := range []byte(session) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("%w: a session's name has only letters, digits, '.', '_' and '-'", ErrMalformed)
		}
	}
	return nil
}

// LocalSocket is the unix socket at which a node that serves NBD at a TCP address serves it, too, for gateways on the
// same host: they are spared the network's layers. It is in Linux's abstract namespace, which belongs to the network
// namespace as the address does: who finds a socket there has found the node of that address, and it goes with the
// node's process. It is as open as the address is to those on the host.
func LocalSocket(addr string) string { return "@lockstep-nbd/" + addr }
