package exportname

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Primary is who serves a volume, as far as a node knows that does not. The node tells a gateway in the text of its NBD
// refusal, in one spelling:
//
//	primary?view=N&nbd=HOST:PORT
//
// It is a hint: the gateway believes it only where nothing newer is known, and only when the node that is named agrees.
type Primary struct {
	View uint64 // in which its tenure began; not 0
	NBD  string // HOST:PORT
}

// maxAddrBytes bounds HOST:PORT. A host's name has 253 bytes at most.
const maxAddrBytes = 264

const (
	primaryPrefix = "primary?view="
	nbdKey        = "&nbd="
)

// FormatPrimary is the text for a primary.
func FormatPrimary(p Primary) string {
	return primaryPrefix + strconv.FormatUint(p.View, 10) + nbdKey + p.NBD
}

// ParsePrimary reads such a text. It comes from the network: every byte is checked.
func ParsePrimary(text string) (Primary, error) {
	rest, ok := strings.CutPrefix(text, primaryPrefix)
	view, addr, ok2 := strings.Cut(rest, nbdKey)
	if !ok || !ok2 {
		return Primary{}, fmt.Errorf("%w: want %sN%sHOST:PORT", ErrMalformed, primaryPrefix, nbdKey)
	}
	num, err := parseNumber(view)
	if err != nil {
		return Primary{}, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || len(addr) > maxAddrBytes || num == 0 {
		return Primary{}, fmt.Errorf("%w: view %d at %.*q", ErrMalformed, num, maxAddrBytes, addr)
	}
	// A port by number and nothing but host characters: the name is dialed, and goes into logs.
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Primary{}, fmt.Errorf("%w: port %q", ErrMalformed, port)
	}
	for _, c := range []byte(host) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-', c == ':', c == '%':
		default:
			return Primary{}, fmt.Errorf("%w: host %q", ErrMalformed, host)
		}
	}
	return Primary{View: num, NBD: addr}, nil
}
