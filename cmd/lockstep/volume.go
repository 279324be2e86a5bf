package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newVolume(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Create, list, show, resize, resume, force, detach and delete volumes, drop copies",
		Args:  wantSubcommand,
		RunE:  noSubcommand,
	}
	cmd.AddCommand(newVolumeCreate(env), newVolumeList(env), newVolumeShow(env), newVolumeResize(env), newVolumeResume(env),
		newVolumeForce(env), newVolumeDetachAll(env), newVolumeDropCopy(env), newVolumeDelete(env))
	return cmd
}

// syncFlag is a volume's sync mode on the command line.
type syncFlag viewsvc.SyncMode

func (f *syncFlag) String() string { return string(*f) }
func (f *syncFlag) Type() string   { return "always|flush" }
func (f *syncFlag) Set(s string) error {
	switch mode := viewsvc.SyncMode(s); mode {
	case viewsvc.SyncAlways, viewsvc.SyncFlush:
		*f = syncFlag(mode)
		return nil
	}
	return fmt.Errorf("%q is no sync mode: use always or flush", s)
}

const syncHelp = `when a write is acknowledged: always = on stable storage of every member;
flush = in the page cache of every member, stable at flush`

func newVolumeCreate(env *environment) *cobra.Command {
	v := viewsvc.Volume{Copies: 2, MinCopies: 1}
	size, sync := sizeFlag(0), syncFlag(viewsvc.SyncAlways)
	cmd := &cobra.Command{
		Use:   "create NAME --size 10G",
		Short: "Create a volume",
		Args:  wantArgs("NAME"),
	}
	flags := cmd.Flags()
	flags.Var(&size, "size", "size, like 512M or 10G; a multiple of 4096 bytes")
	flags.IntVar(&v.Copies, "copies", v.Copies, fmt.Sprintf("members that the view is to have, 1 to %d", viewsvc.MaxCopies))
	flags.IntVar(&v.MinCopies, "min-copies", v.MinCopies, "members below which writes wait")
	flags.Var(&sync, "sync", syncHelp)
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		v.Name, v.Size, v.Sync = args[0], uint64(size), viewsvc.SyncMode(sync)
		if err := checkVolume(v); err != nil {
			return usagef("volume create: %w", err)
		}
		made, err := view.CreateVolume(ctx, v)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "created %s, %s, %d copies, sync %s\n", made.Name, formatSize(made.Size), made.Copies, made.Sync)
		return nil
	})
}

// checkVolume finds what is wrong with a new volume before the view service is asked, which checks again.
func checkVolume(v viewsvc.Volume) error {
	if err := checkVolumeName(v.Name); err != nil {
		return err
	}
	switch {
	case v.Size == 0:
		return fmt.Errorf("--size is missing, like --size 10G")
	case v.Size < viewsvc.MinVolumeSize || v.Size > viewsvc.MaxVolumeSize:
		return fmt.Errorf("--size %s: a volume has from %s to %s", formatSize(v.Size),
			formatSize(viewsvc.MinVolumeSize), formatSize(viewsvc.MaxVolumeSize))
	case v.Copies < 1 || v.Copies > viewsvc.MaxCopies:
		return fmt.Errorf("--copies %d: a volume has from 1 to %d copies", v.Copies, viewsvc.MaxCopies)
	case v.MinCopies < 1 || v.MinCopies > v.Copies:
		return fmt.Errorf("--min-copies %d: from 1 to --copies, which is %d", v.MinCopies, v.Copies)
	}
	return nil
}

func newVolumeList(env *environment) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List volumes", Args: wantArgs()}
	asJSON := cmd.Flags().Bool("json", false, "print JSON: a list of what `status --json` has of each volume")
	return operate(cmd, env, func(ctx context.Context, view *operator, _ []string) error {
		cluster, err := view.Status(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			report, _ := newStatusReport(cluster, "")
			return writeJSON(env.stdout, report.Volumes)
		}
		table(env.stdout, func(row func(...any)) {
			row("NAME", "SIZE", "COPIES", "MIN", "SYNC", "STATE", "PRIMARY")
			for _, vs := range cluster.Volumes {
				r := newVolumeReport(vs)
				row(r.Name, formatSize(r.Size), vs.Volume.Copies, vs.Volume.MinCopies, r.Sync, r.State, r.View.Primary)
			}
		})
		return nil
	})
}

func newVolumeShow(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a volume: what was asked for, and what there is",
		Args:  wantArgs("NAME"),
	}
	asJSON := cmd.Flags().Bool("json", false, "print JSON: what `status --json` has of the volume")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		vs, err := view.volume(ctx, args[0])
		if err != nil {
			return err
		}
		r := newVolumeReport(vs)
		if *asJSON {
			return writeJSON(env.stdout, r)
		}
		table(env.stdout, func(row func(...any)) {
			row("name", r.Name)
			row("id", vs.Volume.ID)
			row("size", fmt.Sprintf("%s (%d bytes)", formatSize(r.Size), r.Size))
			if r.WantedSize > 0 {
				obstacle, _ := growthObstacle(vs, r.WantedSize)
				row("growing", fmt.Sprintf("to %s: %s", formatSize(r.WantedSize), obstacle))
			}
			row("sync", r.Sync)
			row("copies", fmt.Sprintf("%d, writes need %d", r.Copies, r.MinCopies))
			row("view", fmt.Sprintf("%d, tenure %d", r.View.Num, r.View.Tenure))
			row("primary", r.View.Primary)
			row("backups", strings.Join(r.View.Backups, ","))
			row("attached", exclusiveHolder(vs.Volume.Claim))
			if r.Forced > 0 {
				row("forced", fmt.Sprintf("%d times promoted by force, see `lockstep events %s`", r.Forced, r.Name))
			}
			row("state", verdictLine(r))
		})
		fmt.Fprintln(env.stdout)
		writeReplicas(env.stdout, r)
		return nil
	})
}

func newVolumeResume(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resume NAME",
		Short: "Let a held volume serve again",
		Long: `Let a held volume serve again. A volume with --sync flush is held after all of its members stopped uncleanly:
writes that were acknowledged but never flushed may be lost, and NBD has no way of telling a client that
reconnects. Restart what uses the volume (unmount, check, mount) before you resume it.`,
		Args: wantArgs("NAME"),
	}
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		vs, err := view.volume(ctx, args[0])
		if err != nil {
			return err
		}
		if err := view.Resume(ctx, args[0]); err != nil {
			return err
		}
		fmt.Fprintf(env.stderr, "DATA LOSS ACCEPTED: %s\n", resumedLoss(vs))
		fmt.Fprintf(env.stdout, "resumed %s\n", args[0])
		return nil
	})
}

func newVolumeDelete(env *environment) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME [--yes]",
		Short: "Delete a volume and everything on it",
		Long: `Delete a volume and everything on it, for good. On a terminal it asks for the volume's name first; elsewhere it does nothing
without --yes. A volume that somebody has attached exclusively is not deleted.`,
		Args: wantArgs("NAME"),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		vs, err := view.volume(ctx, args[0])
		if err != nil {
			return err
		}
		if !yes && !confirmed(env, fmt.Sprintf("All %s of %s will be lost for good.", formatSize(vs.Volume.Size), args[0]), args[0]) {
			return withHint(fmt.Errorf("volume delete: nobody confirmed that all on %s is to be lost; nothing was done", args[0]),
				"type its name on a terminal, or pass --yes")
		}
		if err := view.DeleteVolume(ctx, args[0]); err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "deleted %s\n", args[0])
		return nil
	})
}

// confirmed asks whoever is at the terminal, if anybody, to type a name.
func confirmed(env *environment, loss, name string) bool {
	if !isTerminal(env.stdin) {
		return false
	}
	fmt.Fprintf(env.stderr, "%s Type its name to go on: ", loss)
	answer, _ := bufio.NewReader(env.stdin).ReadString('\n') // an error leaves an answer that does not match
	return strings.TrimSpace(answer) == name
}
