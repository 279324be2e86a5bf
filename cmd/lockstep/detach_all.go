package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newVolumeDetachAll(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "detach-all NAME",
		Short: "End every client of a volume, whoever has it for itself",
		Long: `End every client of a volume, whoever has it for itself. Clients that connect anew are let in. One whose connection
was ended so never gets back to the disk with what it has in memory; nothing that was acknowledged to it is lost.
Do this when the machine that had the volume attached exclusively is gone for good.`,
		Args: wantArgs("NAME"),
	}
	connect := operatorFlags(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, servers, err := connect()
		if err != nil {
			return err
		}
		defer client.Close()
		vs, err := findVolume(cmd.Context(), client, args[0])
		if err != nil {
			return explain(err, servers)
		}
		if _, err := client.Claim(cmd.Context(), args[0], viewsvc.ClaimChange{Act: viewsvc.ClaimEvict}); err != nil {
			return explain(err, servers)
		}
		fmt.Fprintf(env.stdout, "detached all clients of %s; it was attached exclusively by: %v\n", args[0], vs.Volume.Claim)
		return nil
	}
	return cmd
}

// exclusiveHolder is who has a volume for itself, for people.
func exclusiveHolder(c viewsvc.Claim) string {
	if c.Owner == "" {
		return "by anybody"
	}
	return "exclusively, by " + c.String()
}
