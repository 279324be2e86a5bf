package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newVolumeDetachAll(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "detach-all NAME",
		Short: "End every client of a volume, whoever has it to itself",
		Long: `End every client of a volume, whoever has it to itself. Clients that connect anew are let in. One whose connection
was ended so never gets back to the disk with what it has in memory; nothing that was acknowledged to it is lost.
Do this when the machine that had the volume attached exclusively is gone for good.`,
		Args: wantArgs("NAME"),
	}
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		vs, err := view.volume(ctx, args[0])
		if err != nil {
			return err
		}
		if _, err := view.Claim(ctx, args[0], viewsvc.ClaimChange{Act: viewsvc.ClaimEvict}); err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "detached all clients of %s; it was attached %s\n", args[0], exclusiveHolder(vs.Volume.Claim))
		return nil
	})
}

// exclusiveHolder is who has a volume to itself, for people.
func exclusiveHolder(c viewsvc.Claim) string {
	if c.Owner == "" {
		return "shared: any client may connect"
	}
	return "exclusively, by " + c.String()
}
