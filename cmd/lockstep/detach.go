package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lockstep/blockdev/kernel"
)

// detachPatience is how long a device's agent, or the device itself, may take.
const detachPatience = 15 * time.Second

func newDetach(env *environment) *cobra.Command {
	var (
		stateDir string
		force    bool
	)
	cmd := &cobra.Command{
		Use:   "detach VOLUME|/dev/nbdN",
		Short: "Take a volume's block device away",
		Long: `Take a volume's block device away. A device that is mounted, or that a program has open, is left alone unless
--force is given.`,
		Args: wantArgs("VOLUME"),
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "where attachments are noted")
	cmd.Flags().BoolVar(&force, "force", false, "also while it is in use: what waits, and every later access, fails")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d := &detacher{dir: attachDir(stateDir), force: force}
		ctx, cancel := context.WithTimeout(cmd.Context(), detachPatience)
		defer cancel()
		if err := d.detach(ctx, args[0]); err != nil {
			return fmt.Errorf("detach: %w", explainDriver(err))
		}
		return nil
	}
	return cmd
}

// detacher detaches one volume.
type detacher struct {
	dir   attachDir
	force bool
}

func (d *detacher) detach(ctx context.Context, what string) error {
	a, err := d.find(what)
	if err != nil {
		return err
	}
	if a.Fuse != "" {
		return d.detachFuse(ctx, a)
	}
	dev, there := a.nbd()
	if !there {
		return d.cleanUp(ctx, a)
	}
	if !d.force {
		if err := d.unused(a); err != nil {
			return err
		}
	}
	driver, err := kernel.Open()
	if err != nil {
		return err
	}
	defer driver.Close()
	if err := driver.Disconnect(dev.Index); err != nil {
		return err
	}
	return d.cleanUp(ctx, a)
}

// unused looks harder than an agent may. A device that nobody serves is not opened: that could hang for ever.
func (d *detacher) unused(a *attachment) error {
	if err := unused(a.Device, a.PID); err != nil || !d.served(a) {
		return err
	}
	return claimable(a.Device)
}

// served tells whether the volume has an agent.
func (d *detacher) served(a *attachment) bool {
	lock, err := d.dir.lock(a.Volume)
	if err == nil {
		lock.Close()
	}
	return errors.Is(err, errAgentRuns)
}

// find reads the note of a volume, or of a device.
func (d *detacher) find(what string) (*attachment, error) {
	if !strings.HasPrefix(what, "/") {
		if err := checkVolumeName(what); err != nil {
			return nil, &usageError{err}
		}
		a, err := d.dir.load(what)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, withHint(fmt.Errorf("volume %s is not attached here", what), "see `lockstep attach --list`")
		}
		return a, err
	}
	device, err := filepath.EvalSymlinks(what)
	if err != nil {
		return nil, withHint(err, "see `lockstep attach --list`")
	}
	list, err := d.dir.list()
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if a.Device == device {
			return a, nil
		}
	}
	return nil, withHint(fmt.Errorf("%s is no attached volume", what), "see `lockstep attach --list`")
}

// cleanUp waits for the agent, whose part this is, and does it in the place of one that is not there.
func (d *detacher) cleanUp(ctx context.Context, a *attachment) error {
	lock, err := d.awaitAgent(ctx, a)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := d.dir.load(a.Volume); errors.Is(err, fs.ErrNotExist) {
		return nil // it has done it
	}
	return d.dir.forget(ctx, a)
}

// awaitAgent waits for the agent's end and takes its lock.
func (d *detacher) awaitAgent(ctx context.Context, a *attachment) (*os.File, error) {
	var lock *os.File
	err := poll(ctx, func() (bool, error) {
		var err error
		lock, err = d.dir.lock(a.Volume)
		if errors.Is(err, errAgentRuns) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, withHint(fmt.Errorf("the agent of volume %s (pid %d) does not end", a.Volume, a.PID), "see what it logs")
	}
	return lock, err
}

// signalAgent asks the agent to end, if there is one.
func (d *detacher) signalAgent(a *attachment) error {
	if !d.served(a) {
		return nil
	}
	return syscall.Kill(a.PID, syscall.SIGTERM)
}
