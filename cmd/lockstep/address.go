package main

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"lockstep/blockdev/nbd"
)

// unixPathMax is the longest path of a unix socket on Linux: sun_path less the final NUL.
const unixPathMax = 107

// checkListen accepts an address to listen on: HOST:PORT where the host may be missing (all of the machine's) and the
// port may be 0 (any free one).
func checkListen(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT, like 127.0.0.1:7400", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: the port has to be a number from 0 to 65535", s)
	}
	return nil
}

// checkReachable accepts an address that others are to call. View servers and nodes tell each other the address that
// they listen on, so that it has to be one of these too.
func checkReachable(s string) error {
	if err := checkListen(s); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(s)
	ip, err := netip.ParseAddr(host)
	if host == "" || err == nil && ip.IsUnspecified() {
		return fmt.Errorf("%q has no host that others could call: write HOST:PORT, like 10.0.0.1:7400", s)
	}
	if n, _ := strconv.Atoi(port); n == 0 {
		return fmt.Errorf("%q: nobody can be called at port 0", s)
	}
	return nil
}

// checkUnix accepts unix:/path; ok is false for anything that is no unix socket at all.
func checkUnix(s string) (ok bool, err error) {
	path, ok := strings.CutPrefix(s, "unix:")
	switch {
	case !ok:
		return false, nil
	case !filepath.IsAbs(path):
		return true, fmt.Errorf("%q: write unix: and an absolute path, like unix:/run/lockstep.sock", s)
	case len(path) > unixPathMax:
		return true, fmt.Errorf("%q: the path of a unix socket has at most %d bytes, this one has %d: choose a shorter one",
			s, unixPathMax, len(path))
	}
	return true, nil
}

// addressFlag is an address on the command line. One that was not given stays empty: check does not see it.
type addressFlag struct {
	value string
	kind  string
	check func(string) error
}

func (f *addressFlag) String() string { return f.value }
func (f *addressFlag) Type() string   { return f.kind }
func (f *addressFlag) Set(s string) error {
	f.value = s
	return f.check(s)
}

// memberAddress is where a view server or a node listens, and where others call it.
func memberAddress() *addressFlag {
	return &addressFlag{kind: "HOST:PORT", check: checkReachable}
}

// clientExport is where a gateway listens for clients.
func clientExport(value string) *addressFlag {
	return &addressFlag{value: value, kind: "HOST:PORT|unix:/PATH|systemd", check: checkClientExport}
}

func checkClientExport(s string) error {
	if s == nbd.SystemdAddress {
		return nil
	}
	if ok, err := checkUnix(s); ok {
		return err
	}
	return checkListen(s)
}

// modeFlag is a file's mode on the command line, in octal as chmod takes it.
type modeFlag fs.FileMode

func (f *modeFlag) String() string { return fmt.Sprintf("%04o", fs.FileMode(*f)) }
func (f *modeFlag) Type() string   { return "MODE" }
func (f *modeFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return fmt.Errorf("%q is no mode in octal, like 0660", s)
	}
	*f = modeFlag(n)
	return nil
}

// parseServers reads the value of --view and $LOCKSTEP_VIEW: addresses separated by commas.
func parseServers(s string) ([]string, error) {
	var list []string
	for addr := range strings.SplitSeq(s, ",") {
		addr = strings.TrimSpace(addr)
		if err := checkReachable(addr); err != nil {
			return nil, err
		}
		list = append(list, addr)
	}
	return list, nil
}

// peersFlag collects --peer ID=HOST:PORT.
type peersFlag map[string]string

func (f peersFlag) String() string { return "" }
func (f peersFlag) Type() string   { return "ID=HOST:PORT" }
func (f peersFlag) Set(s string) error {
	id, addr, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("%q is not ID=HOST:PORT, like v2=10.0.0.2:7400", s)
	}
	if err := checkName("a view server's id", id); err != nil {
		return err
	}
	if err := checkReachable(addr); err != nil {
		return err
	}
	if old, twice := f[id]; twice {
		return fmt.Errorf("%s is given twice, as %s and %s", id, old, addr)
	}
	f[id] = addr
	return nil
}
