package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"lockstep/blockdev/kernel"
	"lockstep/blockdev/nbd"
	"lockstep/replication/gateway"
	"lockstep/viewsvc"
)

// attachOptions are the command line of `lockstep attach`.
type attachOptions struct {
	volume string
	device string // "" for any
	view   []string

	readOnly, shared, takeOver bool
	blockSize                  uint32
	deadTimeout, timeout       time.Duration
	driver                     string
	fuse                       string
	tls                        nbd.TLSOptions
	dir                        attachDir
	procs                      *clientProcs
}

func newAttach(env *environment) *cobra.Command {
	var (
		o            attachOptions
		stateDir     string
		table        string
		list, asJSON bool
		daemon       bool
	)
	cmd := &cobra.Command{
		Use:   "attach VOLUME [/dev/nbdN]",
		Short: "Make a volume a block device of this machine",
		Long: `Make a volume a block device of this machine, /dev/nbdN, and serve it until it is detached. The command
stays; it prints the device when it is there. ` + linkDir + `/VOLUME is a link to it.

A file system on the device sees a failover as a pause. When this command is killed the device waits, and goes on
when the command is started again. A signal detaches the device if nobody uses it, and else leaves it waiting.

The volume is attached for this client alone, unless --shared is given.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return wantArgs()(cmd, args)
			}
			return wantArgs("VOLUME", "[/dev/nbdN]")(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.readOnly, "read-only", false, "make a device that cannot be written")
	flags.BoolVar(&o.shared, "shared", false, "let others attach the volume too (ext4 and xfs must never be mounted twice)")
	flags.BoolVar(&o.takeOver, "take-over", false, "end whoever has the volume now")
	flags.Uint32Var(&o.blockSize, "block-size", 4096, "the device's sectors: 512, 1024, 2048 or 4096 bytes")
	flags.DurationVar(&o.deadTimeout, "dead-timeout", 30*24*time.Hour, "how long the device waits for this command to be started again, before its requests fail")
	flags.DurationVar(&o.timeout, "timeout", 0, "how long a request may wait for a primary before it fails; 0 waits for ever, which is what file systems want")
	flags.StringVar(&o.driver, "driver", "auto", "how to talk to the kernel: auto, netlink or ioctl")
	flags.StringVar(&o.fuse, "fuse", "", "do without the kernel's nbd driver: mount nbdfuse at this directory and make a loop device of it")
	flags.StringVar(&stateDir, "state-dir", defaultStateDir, "where attachments are noted")
	flags.StringVar(&table, "table", "", "file with the options of each volume, which those given here override")
	flags.BoolVar(&daemon, "daemon", false, "go to the background when the device is there")
	flags.BoolVar(&list, "list", false, "list what is attached on this machine")
	flags.BoolVar(&asJSON, "json", false, "with --list: as JSON")
	primaryTLSFlags(cmd, &o.tls)
	servers := viewFlag(cmd, env)
	logger := roleFlags(cmd)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if table != "" && !list {
			device, err := readTable(cmd.Flags(), table, args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 && device != "" {
				args = append(args, device)
			}
		}
		abs, err := filepath.Abs(stateDir)
		if err != nil {
			return usagef("attach: --state-dir: %w", err)
		}
		o.dir = attachDir(abs)
		if list {
			return listAttached(env.stdout, o.dir, asJSON)
		}
		if err := errors.Join(o.setArgs(args), checkTLS(cmd, "primary-tls", &o.tls)); err != nil {
			return err
		}
		if o.view, err = servers(defaultView()); err != nil {
			return err
		}
		log, err := logger()
		if err != nil {
			return err
		}
		if daemon {
			return attachInBackground(env, o.dir, o.volume)
		}
		o.procs = newClientProcs(env, o.tls.Mode != nbd.TLSOff)
		tell := readiness(env)
		return serve(log, "attach", func() (running, error) {
			if o.fuse != "" {
				return startFuse(o, log, tell)
			}
			return startAttach(o, log, tell)
		})
	}
	return cmd
}

// setArgs checks what the flags' types do not.
func (o *attachOptions) setArgs(args []string) error {
	o.volume = args[0]
	if err := checkVolumeName(o.volume); err != nil {
		return usagef("attach: %w", err)
	}
	if len(args) > 1 {
		if _, err := kernel.ParseDevice(args[1]); err != nil {
			return usagef("attach: %w", err)
		}
		o.device = args[1]
	}
	switch {
	case o.driver != "auto" && o.driver != "netlink" && o.driver != "ioctl":
		return usagef("attach: --driver %q: use auto, netlink or ioctl", o.driver)
	case o.shared && o.takeOver:
		return usagef("attach: --take-over makes no sense with --shared")
	case o.fuse != "" && o.device != "":
		return usagef("attach: --fuse makes a loop device: do not name %s", o.device)
	case o.deadTimeout < time.Second:
		return usagef("attach: --dead-timeout %v: must be at least 1s", o.deadTimeout)
	}
	c := kernel.Config{Size: uint64(o.blockSize), BlockSize: o.blockSize, DeadTimeout: o.deadTimeout, Identifier: "-"}
	if err := c.Validate(); err != nil {
		return usagef("attach: --block-size: %w", err)
	}
	return nil
}

// claimed is what the attachment is noted as, from now on: locked, and taken up again if it is there.
func (o *attachOptions) claimed() (*attachment, *os.File, error) {
	lock, err := o.dir.lock(o.volume)
	if errors.Is(err, errAgentRuns) {
		err = withHint(fmt.Errorf("volume %s is attached here already: %w", o.volume, err), "see `lockstep attach --list`")
	}
	if err != nil {
		return nil, nil, err
	}
	a, err := o.begin()
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	a.View, a.Shared, a.ReadOnly, a.PID = o.view, o.shared, o.readOnly, os.Getpid()
	return a, lock, nil
}

// begin takes the note of an attachment up again, or makes a new one. That is of a volume that exists: what cannot be attached
// leaves nothing to detach.
func (o *attachOptions) begin() (*attachment, error) {
	if _, err := o.dir.load(o.volume); errors.Is(err, fs.ErrNotExist) {
		client, err := dialViews(o.view, nil)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		_, err = findVolume(context.Background(), client, o.volume)
		if errors.Is(err, viewsvc.ErrNotFound) {
			return nil, &goneError{err}
		}
		if err != nil {
			return nil, explain(err, o.view)
		}
	}
	return o.dir.begin(o.volume)
}

// as is who the client is for the cluster.
func (o *attachOptions) as(a *attachment) gateway.AttachOptions {
	return gateway.AttachOptions{
		Session: a.Session, Generation: a.Generation, Exclusive: !o.shared, TakeOver: o.takeOver,
		Keep: true, // while the device waits for another agent; attachment.release ends it
	}
}

// open makes the backend of the attachment's next generation.
func (o *attachOptions) open(ctx context.Context, a *attachment, g gateway.Options, log zerolog.Logger) (*volumeBackend, error) {
	a.Generation++
	if err := o.dir.save(a); err != nil {
		return nil, fmt.Errorf("note the attachment: %w", err)
	}
	g.View, g.Timeout, g.PrimaryTLS = o.view, o.timeout, o.tls
	if g.Listen != "" && !o.shared {
		g.Attach = o.as(a)
	}
	return openVolume(ctx, a, g, o.as(a), o.procs.follow(logGatewayEvents(log, make(chan error, 1))))
}
