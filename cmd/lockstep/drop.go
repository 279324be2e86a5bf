package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newVolumeDropCopy(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drop-copy NAME NODE",
		Short: "Remove a copy that the volume does not need any more",
		Long: `Remove a copy that the volume does not need any more: of a node that was replaced, and came back. A member's copy is refused,
and any while the volume has fewer copies than it is to have. The node removes it as soon as it lives.`,
		Args: wantArgs("NAME", "NODE"),
	}
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		if err := checkName("a node's name", args[1]); err != nil {
			return usagef("volume drop-copy: %w", err)
		}
		if err := view.DropCopy(ctx, args[0], viewsvc.NodeID(args[1])); err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "%s drops its copy of %s\n", args[1], args[0])
		return nil
	})
}
