package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newForget(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Forget a node that is gone for good",
		Long: `Forget a node that is gone for good: it is in no status any more, and deleted volumes do not wait for it. A node that
lives, or has a copy of a volume that counts, is refused. To replace a node, start another under a new --id: in ten
seconds it is given the copies that are missing; the old one can be forgotten before or after.`,
		Args: wantArgs("NODE"),
	}
	operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		if err := checkName("a node's name", args[0]); err != nil {
			return usagef("forget: %w", err)
		}
		if err := view.ForgetNode(ctx, viewsvc.NodeID(args[0])); err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "forgot %s\n", args[0])
		return nil
	})
	cmd.ValidArgsFunction = cobra.NoFileCompletions // it takes no volume
	return cmd
}
