package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"lockstep/tools/e2e/cluster"
)

// readyLimit is how long a server may take to listen.
const readyLimit = 20 * time.Second

// contender is a server under measurement.
type contender struct {
	name string
	// start starts it in an empty directory of its own; stop ends it.
	start func(ctx context.Context, o options, dir string) (uri string, stop func(), err error)
}

// contenders in the order of the table's columns: each pair of Lockstep and its peer together.
var contenders = []contender{
	{"lockstep always", lockstep("always")},
	{"nbdkit durable", nbdkit("--filter=fua", "fuamode=force")},
	{"lockstep flush", lockstep("flush")},
	{"nbdkit page cache", nbdkit("", "")},
}

// pairs are the indexes of what may be compared.
var pairs = [][2]int{{0, 1}, {2, 3}}

// lockstep starts `lockstep dev` with a sync mode.
func lockstep(sync string) func(context.Context, options, string) (string, func(), error) {
	return func(ctx context.Context, o options, dir string) (string, func(), error) {
		d, err := cluster.StartDev(ctx, cluster.DevOptions{
			Binary: o.Binary, Dir: filepath.Join(dir, "dev"), Logs: dir,
			Args: []string{"--size", strconv.Itoa(o.megabytes) + "M", "--sync", sync},
		})
		if err != nil {
			return "", nil, err
		}
		if err := d.AwaitSafe(ctx); err != nil {
			d.Kill()
			return "", nil, err
		}
		return d.URI, func() { interrupt(d.Process) }, nil
	}
}

// nbdkit starts nbdkit on a file, with a filter if it is named.
func nbdkit(filter, parameter string) func(context.Context, options, string) (string, func(), error) {
	return func(ctx context.Context, o options, dir string) (string, func(), error) {
		file := filepath.Join(dir, "disk.img")
		f, err := os.Create(file)
		if err != nil {
			return "", nil, err
		}
		if err := errors.Join(f.Truncate(int64(o.megabytes)<<20), f.Close()); err != nil {
			return "", nil, err
		}
		ports, err := cluster.FreePorts(1)
		if err != nil {
			return "", nil, err
		}
		host, port, err := net.SplitHostPort(ports[0])
		if err != nil {
			return "", nil, err
		}
		args := []string{"--foreground", "--ipaddr", host, "--port", port}
		if filter != "" {
			args = append(args, filter, "file", file, parameter)
		} else {
			args = append(args, "file", file)
		}
		p := cluster.NewProcess("nbdkit", "nbdkit", dir, args...)
		if err := p.Start(); err != nil {
			return "", nil, err
		}
		err = cluster.Await(ctx, readyLimit, "nbdkit", func() error {
			if !p.Running() {
				return fmt.Errorf("it has ended: %s", p.LogTail(1000))
			}
			conn, err := net.Dial("tcp", ports[0])
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err != nil {
			p.Kill()
			return "", nil, err
		}
		return "nbd://" + ports[0] + "/", func() { interrupt(p) }, nil
	}
}

// interrupt ends a process as Ctrl-C does.
func interrupt(p *cluster.Process) {
	if p.Signal(syscall.SIGINT) != nil || p.Wait(readyLimit) != nil {
		p.Kill()
	}
}
