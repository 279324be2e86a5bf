package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newVolumeForce(env *environment) *cobra.Command {
	var (
		to     nameFlag
		accept bool
		reason string
	)
	cmd := &cobra.Command{
		Use:   "force NAME --to NODE --accept-data-loss",
		Short: "Make a copy the only one that counts, and lose what it lacks",
		Long: `Make the copy on a node the only one that counts, whatever it holds. Acknowledged writes that it lacks are lost for good;
the other copies are made again from it. This is for a volume all of whose members are gone and do not come back.
Without --accept-data-loss it only says what would be lost. A forced promotion is recorded: "lockstep events" and
"lockstep volume show" tell of it for ever. Check what is on the disk (fsck) before you go on with it.`,
		Args: wantArgs("NAME"),
	}
	flags := cmd.Flags()
	flags.Var(&to, "to", "node whose copy is to count")
	flags.BoolVar(&accept, "accept-data-loss", false, "really do it")
	flags.StringVar(&reason, "reason", "", "why, for the record")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		if err := required(cmd, "to"); err != nil {
			return err
		}
		vs, err := view.volume(ctx, args[0])
		if err != nil {
			return err
		}
		loss, err := forcedLoss(vs, viewsvc.NodeID(to))
		if err != nil {
			return err
		}
		if !accept {
			return withHint(fmt.Errorf("volume force: %s", loss), "nothing was done; to lose that, pass --accept-data-loss")
		}
		made, err := view.Force(ctx, args[0], viewsvc.NodeID(to), reason)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.stderr, "DATA LOSS ACCEPTED: %s\n", loss)
		fmt.Fprintf(env.stdout, "%s: primary is now %s, view %d, by force; that is forced promotion %d of this volume\n",
			args[0], to, made.Num, made.DataLossGen)
		return nil
	})
}

// forcedLoss says what a forced promotion would lose, as far as the reports tell: a member that did not report to the
// present leader may have more. A volume that serves needs no force.
func forcedLoss(vs viewsvc.VolumeStatus, to viewsvc.NodeID) (string, error) {
	name := vs.Volume.Name
	if judge(vs).state != stateUnavailable {
		return "", withHint(fmt.Errorf("volume force: %s serves, a forced promotion would only lose data", name), "to move its primary: lockstep handover %s", name)
	}
	var copy viewsvc.Peer
	for _, p := range vs.Peers {
		if p.Node == to && (copy.Replica == "" || !vs.View.Has(copy.Replica)) {
			copy = p
		}
	}
	if copy.Replica == "" {
		return "", withHint(fmt.Errorf("volume force: node %s has no copy of %s", to, name), "see `lockstep status %s`", name)
	}
	has := reportOf(vs, copy.Replica).LogEnd
	most, holder := longestLog(vs)
	member := choose(vs.View.Has(copy.Replica), "a member", "NO MEMBER")
	switch {
	case most > has:
		return fmt.Sprintf("the copy on %s, %s of view %d, ends with record %d; %s has records up to %d: %d would be lost",
			to, member, vs.View.Num, has, holder, most, most-has), nil
	case vs.View.Has(copy.Replica):
		return fmt.Sprintf("the copy on %s, a member of view %d, ends with record %d, and no longer log is known of", to, vs.View.Num, has), nil
	}
	return fmt.Sprintf("the copy on %s is NO MEMBER of view %d and ends with record %d; how much the members have is not known, all of that would be lost",
		to, vs.View.Num, has), nil
}

// longestLog is how far the log of a view's member reaches, as far as the view service knows, and on which node.
func longestLog(vs viewsvc.VolumeStatus) (end uint64, node string) {
	end, node = vs.Floor.LSN, "a member" // each has had that much
	for _, r := range vs.Reports {
		if e := max(r.Commit, r.LogEnd); vs.View.Has(r.Replica) && e > end {
			end, node = e, nodeNames(vs.Peers)(r.Replica)
		}
	}
	return end, node
}

// resumedLoss says what is given up when a held volume goes on.
func resumedLoss(vs viewsvc.VolumeStatus) string {
	has := reportOf(vs, vs.View.Primary).LogEnd
	loss := fmt.Sprintf("%s goes on with the copy on %s, whose log ends with record %d; what was acknowledged and not flushed behind that is lost",
		vs.Volume.Name, nodeNames(vs.Peers)(vs.View.Primary), has)
	for _, r := range vs.Reports {
		if !vs.View.Has(r.Replica) && r.LogEnd > has {
			loss += fmt.Sprintf("; the copy on %s, no member of view %d, has records up to %d, which are given up",
				nodeNames(vs.Peers)(r.Replica), vs.View.Num, r.LogEnd)
		}
	}
	return loss
}
