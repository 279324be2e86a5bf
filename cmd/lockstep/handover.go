package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newHandover(env *environment) *cobra.Command {
	var to nameFlag
	cmd := &cobra.Command{
		Use:   "handover VOLUME",
		Short: "Make a backup the primary; clients see a pause of some milliseconds",
		Long: `Make a backup the primary, without losing a request: the primary stops taking requests, waits until the
successor has everything, and steps down. Clients behind the gateway see a pause of some milliseconds.
Do this before you stop a node for maintenance.`,
		Args: wantArgs("VOLUME"),
	}
	cmd.Flags().Var(&to, "to", "node that is to be primary (default: the backup with the longest log)")
	connect := operatorFlags(cmd, env)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, servers, err := connect()
		if err != nil {
			return err
		}
		defer client.Close()
		view, err := client.Handover(cmd.Context(), args[0], viewsvc.NodeID(to))
		if err != nil {
			return explain(err, servers)
		}
		primary := string(view.Primary)
		if cluster, err := client.Status(cmd.Context()); err == nil {
			for _, v := range cluster.Volumes {
				if v.Volume.Name == args[0] {
					primary = nodeNames(v.Peers)(view.Primary)
				}
			}
		}
		fmt.Fprintf(env.stdout, "%s: primary is now %s, view %d\n", args[0], primary, view.Num)
		return nil
	}
	return cmd
}
