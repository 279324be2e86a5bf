package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

// openPatience is how long `lockstep handover` waits for the new primary to serve, after the view was made.
const openPatience = 3 * time.Second

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
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		made, err := view.Handover(ctx, args[0], viewsvc.NodeID(to))
		if err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "%s: primary is now %s, view %d\n", args[0], awaitOpen(ctx, view.Client, args[0], made), made.Num)
		return nil
	})
}

// awaitOpen waits until the new primary is known to serve, so that a `lockstep status` that follows does not find the
// volume on its way, and returns the primary's node. After openPatience the status is the better place to look.
func awaitOpen(ctx context.Context, client *viewsvc.Client, volume string, view viewsvc.View) string {
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	primary := string(view.Primary)
	_ = poll(ctx, func() (bool, error) {
		vs, err := findVolume(ctx, client, volume)
		if err != nil {
			return false, err
		}
		primary = nodeNames(vs.Peers)(view.Primary)
		return judge(vs).state != stateUnavailable, nil
	})
	return primary
}
