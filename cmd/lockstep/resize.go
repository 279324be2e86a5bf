package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

// How long `lockstep volume resize` waits for the volume to grow before it says what is in the way, and how long if a member
// has no room.
const (
	resizePatience = 10 * time.Second
	noRoomPatience = 2 * time.Second
)

func newVolumeResize(env *environment) *cobra.Command {
	size := sizeFlag(0)
	cmd := &cobra.Command{
		Use:   "resize NAME --size 20G",
		Short: "Make a volume larger while it is used",
		Long: `Make a volume larger while it is used; it cannot be made smaller. What is new reads as zeroes and takes no space.
The command waits until clients can use it. A device of ` + "`lockstep attach`" + ` has the new size a moment later (Linux 5.3), and
what is on it can grow while it is mounted (resize2fs, xfs_growfs). NBD clients that are connected go on and do not notice:
there is no way to tell them. They see the new size when they connect again; so does a device of --fuse.

As long as a member has no room the volume stays as it is. Asking for the size that it has takes the wish back.`,
		Args: wantArgs("NAME"),
	}
	cmd.Flags().Var(&size, "size", "the new size, like 20G; a multiple of 4096 bytes")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		name, want := args[0], uint64(size)
		if want == 0 {
			return usagef("volume resize: --size is missing, like --size 20G")
		}
		vs, err := view.volume(ctx, name)
		if err != nil {
			return err
		}
		had := vs.Volume.Size
		switch {
		case want < had:
			return fmt.Errorf("volume resize: %s has %s; a volume cannot be made smaller, to %s", name, formatSize(had), formatSize(want))
		case want > viewsvc.MaxVolumeSize:
			return usagef("volume resize: --size %s: a volume has up to %s", formatSize(want), formatSize(viewsvc.MaxVolumeSize))
		case want == had && vs.Volume.Wanted == 0:
			fmt.Fprintf(env.stdout, "%s has %s already\n", name, formatSize(had))
			return nil
		}
		if err := view.ResizeVolume(ctx, name, want); err != nil {
			return err
		}
		if want == had {
			fmt.Fprintf(env.stdout, "%s keeps its %s\n", name, formatSize(had))
			return nil
		}
		if vs, err = awaitSize(ctx, view, name, want); err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "%s has %s now, for devices of attach and clients that connect from now on\n", name, formatSize(vs.Volume.Size))
		return nil
	})
}

// awaitSize waits until clients can use what was wished for, or says why they cannot.
func awaitSize(ctx context.Context, view *operator, name string, want uint64) (viewsvc.VolumeStatus, error) {
	began := time.Now()
	wait, cancel := context.WithTimeout(ctx, resizePatience)
	defer cancel()
	var vs viewsvc.VolumeStatus
	err := poll(wait, func() (done bool, err error) {
		now, err := view.volume(wait, name)
		if err != nil && wait.Err() != nil {
			return false, nil // it is poll's to say that the time is up
		}
		if err == nil {
			vs = now
		}
		_, hopeless := growthObstacle(vs, want)
		return vs.Volume.Size >= want || hopeless && time.Since(began) > noRoomPatience, err
	})
	if ctx.Err() == nil && vs.Volume.Size < want && (err == nil || errors.Is(err, context.DeadlineExceeded)) {
		obstacle, _ := growthObstacle(vs, want)
		err = withHint(fmt.Errorf("volume resize: %s still has %s: %s", name, formatSize(vs.Volume.Size), obstacle),
			"it grows by itself when that is mended; `lockstep volume resize %s --size %d` takes the wish back", name, vs.Volume.Size)
	}
	return vs, err
}

// growthObstacle is what a volume waits for before it can have a size. It is hopeless if somebody has to do something.
func growthObstacle(vs viewsvc.VolumeStatus, want uint64) (what string, hopeless bool) {
	nodeOf := nodeNames(vs.Peers)
	if reportOf(vs, vs.View.Primary).Role != viewsvc.RolePrimary {
		return "no primary serves it", false
	}
	for _, r := range vs.View.Members() {
		switch said := reportOf(vs, r); {
		case said.Room >= want:
		case said.GrowError != "":
			return fmt.Sprintf("%s: %s", nodeOf(r), said.GrowError), true
		case said.Room == 0:
			return fmt.Sprintf("%s runs a version that cannot grow", nodeOf(r)), true
		default:
			return fmt.Sprintf("%s is making room", nodeOf(r)), false
		}
	}
	return "the primary has not ordered it yet", false
}
