package viewsvc

import (
	"fmt"
	"net"
	"regexp"
	"strings"
)

// maxNameBytes bounds every identity that comes from outside.
const maxNameBytes = 128

// volumeName also keeps names safe as directory names, in URLs and as NBD export names.
var volumeName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// withDefaults fills in what an operator left out.
func (v Volume) withDefaults() Volume {
	if v.Sync == "" {
		v.Sync = SyncAlways
	}
	if v.Copies == 0 {
		v.Copies = 2
	}
	if v.MinCopies == 0 {
		v.MinCopies = 1
	}
	return v
}

// validate checks all that can be known without looking at the cluster.
func (v Volume) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case !volumeName.MatchString(v.Name):
		return bad("volume name %q: use 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit", v.Name)
	case len(v.ID) > maxNameBytes:
		return bad("volume ID of %d bytes", len(v.ID))
	case v.Size%BlockSize != 0:
		return bad("size %d is not a multiple of %d", v.Size, BlockSize)
	case v.Wanted != 0 && (!validSize(v.Wanted) || v.Wanted <= v.Size):
		return bad("size %d is to become %d", v.Size, v.Wanted)
	case v.Size < MinVolumeSize || v.Size > MaxVolumeSize:
		return bad("size %d is not between 1 MiB and 1 PiB", v.Size)
	case v.Sync != SyncAlways && v.Sync != SyncFlush:
		return bad("sync mode %q: use %s or %s", v.Sync, SyncAlways, SyncFlush)
	case v.Copies < 1 || v.Copies > MaxCopies:
		return bad("%d copies: use 1 to %d", v.Copies, MaxCopies)
	case v.MinCopies < 1 || v.MinCopies > v.Copies:
		return bad("min copies %d: use 1 to %d, the number of copies", v.MinCopies, v.Copies)
	}
	return nil
}

func validNode(n NodeInfo) error {
	if !nodeName.MatchString(string(n.ID)) {
		return fmt.Errorf("%w: node ID %q: use 1 to 63 letters, digits or . _ -, beginning with a letter or digit", ErrInvalid, n.ID)
	}
	if _, _, err := net.SplitHostPort(n.Addr); err != nil || len(n.Addr) > maxNameBytes {
		return fmt.Errorf("%w: node %s: address %q is not HOST:PORT", ErrInvalid, n.ID, n.Addr)
	}
	if path, isUnix := strings.CutPrefix(n.NBD, "unix:"); len(n.NBD) > 4*maxNameBytes || isUnix && path == "" {
		return fmt.Errorf("%w: node %s: NBD address %q is neither HOST:PORT nor unix:/path", ErrInvalid, n.ID, n.NBD)
	}
	return nil
}

// validate checks a ping's form before anything looks into it.
func (p PingRequest) validate() error {
	if err := validNode(NodeInfo{ID: p.Node, Addr: p.Addr, NBD: p.NBD}); err != nil {
		return err
	}
	if p.Incarnation == "" || len(p.Incarnation) > maxNameBytes {
		return fmt.Errorf("%w: node %s: a ping needs an incarnation", ErrInvalid, p.Node)
	}
	for _, r := range p.Replicas {
		if r.Replica == "" || len(r.Replica) > maxNameBytes || r.Volume == "" || len(r.Volume) > maxNameBytes {
			return fmt.Errorf("%w: node %s reports replica %q of volume %q", ErrInvalid, p.Node, r.Replica, r.Volume)
		}
	}
	for _, a := range p.Absent {
		if a.Volume == "" || len(a.Volume) > maxNameBytes {
			return fmt.Errorf("%w: node %s reports no replica of volume %q", ErrInvalid, p.Node, a.Volume)
		}
	}
	return nil
}
