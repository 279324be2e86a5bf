package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// The lab's network is of the range that is kept for benchmarks (RFC 2544): nobody's.
const labNetwork = "198.18.77."

const labPrefix = "lockstep-"

var labs atomic.Int32

// Lab is a network of hosts for one test: a namespace for each, joined by a bridge in a namespace of its own, so that
// nothing of it is seen outside. Packets from one host to another can be made to vanish, in one direction or in both,
// as they do behind a broken switch: no error comes back.
//
// A host loses what it sends to another because it is given a wrong hardware address for it. That needs nothing of the
// kernel but namespaces, veth and bridge.
type Lab struct {
	prefix string
	hosts  []string
}

// NewLab makes the network. It needs root. What labs of dead processes left is removed first.
func NewLab(ctx context.Context, hosts ...string) (*Lab, error) {
	if err := sweepLabs(); err != nil {
		return nil, err
	}
	l := &Lab{prefix: fmt.Sprintf("%s%d-%d-", labPrefix, os.Getpid(), labs.Add(1)), hosts: hosts}
	if err := l.make(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) make(ctx context.Context) error {
	bridge := l.prefix + "switch"
	steps := [][]string{
		{"netns", "add", bridge},
		{"-n", bridge, "link", "add", "name", "br0", "type", "bridge"},
		{"-n", bridge, "link", "set", "br0", "up"},
	}
	for i, h := range l.hosts {
		ns, port := l.namespace(h), "p"+strconv.Itoa(i)
		steps = append(steps, [][]string{
			{"netns", "add", ns},
			{"-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns},
			{"-n", bridge, "link", "set", port, "master", "br0", "up"},
			{"-n", ns, "addr", "add", l.IP(h) + "/24", "dev", "eth0"},
			{"-n", ns, "link", "set", "lo", "up"},
			{"-n", ns, "link", "set", "eth0", "up"},
		}...)
	}
	for _, s := range steps {
		if err := ipCommand(ctx, s...); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the network. The processes on its hosts must have ended.
func (l *Lab) Close() error {
	var errs []error
	for _, h := range append([]string{"switch"}, l.hosts...) {
		if _, err := os.Stat("/run/netns/" + l.namespace(h)); err == nil {
			errs = append(errs, ipCommand(context.Background(), "netns", "del", l.namespace(h)))
		}
	}
	return errors.Join(errs...)
}

func (l *Lab) namespace(host string) string { return l.prefix + host }

// IP is a host's address.
func (l *Lab) IP(host string) string {
	for i, h := range l.hosts {
		if h == host {
			return labNetwork + strconv.Itoa(i+1)
		}
	}
	panic("cluster: the lab has no host " + strconv.Quote(host))
}

// Cut makes what one host sends to another vanish. The other direction stays as it is.
func (l *Lab) Cut(ctx context.Context, from, to string) error {
	return ipCommand(ctx, "-n", l.namespace(from), "neigh", "replace", l.IP(to),
		"lladdr", "02:00:00:00:00:ff", "nud", "permanent", "dev", "eth0")
}

// CutBoth makes two hosts lose each other.
func (l *Lab) CutBoth(ctx context.Context, a, b string) error {
	return errors.Join(l.Cut(ctx, a, b), l.Cut(ctx, b, a))
}

// Heal undoes every Cut.
func (l *Lab) Heal(ctx context.Context) error {
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, ipCommand(ctx, "-n", l.namespace(h), "neigh", "flush", "nud", "permanent", "dev", "eth0"))
	}
	return errors.Join(errs...)
}

// wrap is a command line that runs another on a host. The process has the other's number: ip executes it in its place.
func (l *Lab) wrap(host string, args ...string) []string {
	return append([]string{"ip", "netns", "exec", l.namespace(host)}, args...)
}

func ipCommand(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cluster: ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// sweepLabs removes the namespaces of test processes that were killed.
func sweepLabs() error {
	names, err := os.ReadDir("/run/netns")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cluster: namespaces: %w", err)
	}
	var errs []error
	for _, n := range names {
		rest, ours := strings.CutPrefix(n.Name(), labPrefix)
		pid, _, _ := strings.Cut(rest, "-")
		if id, err := strconv.Atoi(pid); !ours || err != nil || syscall.Kill(id, 0) == nil {
			continue
		}
		errs = append(errs, ipCommand(context.Background(), "netns", "del", n.Name()))
	}
	return errors.Join(errs...)
}
