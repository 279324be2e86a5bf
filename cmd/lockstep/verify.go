package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

// checkStall is how long a check may make no progress before the command gives up waiting.
const checkStall = time.Minute

func newVerify(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify VOLUME",
		Short: "Compare a volume's members by their checksums, and repair what differs",
		Long: `Compare the members of a volume by their tables of checksums, region by region, each as of one record of the
log, while clients go on. No data is read; "lockstep scrub" does that. What differs is replaced by what most members
have, or the primary where there is no majority.`,
		Args: wantArgs("VOLUME"),
	}
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		reports, err := view.check(ctx, args[0], false)
		if err != nil {
			return err
		}
		for _, r := range reports {
			if r.Bad == 0 {
				fmt.Fprintf(env.stdout, "%s: %s compared, the members are equal\n", args[0], formatSize(r.Blocks*viewsvc.BlockSize))
				continue
			}
			fmt.Fprintf(env.stdout, "%s: %s compared, %d blocks differed, %d repaired\n",
				args[0], formatSize(r.Blocks*viewsvc.BlockSize), r.Bad, r.Repaired)
			if r.Repaired < r.Bad {
				return withHint(fmt.Errorf("verify: %d blocks still differ", r.Bad-r.Repaired), "run it again; see `lockstep status %s`", args[0])
			}
		}
		return nil
	})
}

func newScrub(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scrub VOLUME",
		Short: "Read all of a volume's copies now and repair what has gone bad",
		Long: `Read every block of every copy of a volume and hold it against its checksum, as fast as clients allow; a block
that has gone bad is fetched from another member. Nodes do this by themselves, slowly; this is for now.`,
		Args: wantArgs("VOLUME"),
	}
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		reports, err := view.check(ctx, args[0], true)
		if err != nil {
			return err
		}
		left := uint64(0)
		for node, r := range reports {
			fmt.Fprintf(env.stdout, "%s: %s read on %s, %d blocks bad, %d repaired\n",
				args[0], formatSize(r.Blocks*viewsvc.BlockSize), node, r.Bad, r.Repaired)
			left += r.Bad - min(r.Bad, r.Repaired)
		}
		if left > 0 {
			return withHint(fmt.Errorf("scrub: %d blocks stay bad", left), "see `lockstep events`; replace the disk that they are on")
		}
		return nil
	})
}

// check orders a check and waits until all that it concerns have finished. The result has one report for each node.
func (o *operator) check(ctx context.Context, volume string, scrub bool) (map[string]viewsvc.CheckReport, error) {
	id, err := o.Check(ctx, volume, scrub)
	if err != nil {
		return nil, err
	}
	var reports map[string]viewsvc.CheckReport
	progress, since := uint64(0), time.Now()
	err = poll(ctx, func() (bool, error) {
		vs, err := o.volume(ctx, volume)
		if err != nil {
			return false, err
		}
		reports = map[string]viewsvc.CheckReport{}
		all, blocks := true, uint64(0)
		for _, p := range vs.Peers {
			if !p.Alive || !scrub && p.Replica != vs.View.Primary {
				continue
			}
			c := reportOf(vs, p.Replica).Check
			if c == nil || c.ID != id {
				all = false
				continue
			}
			if c.Error != "" {
				return false, errors.New(c.Error)
			}
			all, blocks = all && c.Finished, blocks+c.Blocks
			reports[string(p.Node)] = *c
		}
		if blocks != progress {
			progress, since = blocks, time.Now()
		}
		if !all && !scrub && time.Since(since) > checkStall {
			return false, withHint(fmt.Errorf("verify: no progress for %v", checkStall), "run it again; see `lockstep status %s`", volume)
		}
		return all && len(reports) > 0, nil
	})
	return reports, err
}
