package main

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestOperatorsCommands runs the scripts of testdata/operator against a cluster that lives. They have one command
// more than those of testdata/script:
//
//	await VOLUME VERDICT    waits until this is what status says first
func TestOperatorsCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	home := t.TempDir()
	startDev(t, home, "--listen", freeAddr(t), "--size", "64M", "--nodes", "3")
	view := layoutOf(t, home).View
	testscript.Run(t, testscript.Params{
		Dir: "testdata/operator",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exitsCommand,
			"await": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: await VOLUME VERDICT")
				}
				ctx, cancel := context.WithTimeout(context.Background(), testPatience)
				defer cancel()
				ts.Check(poll(ctx, func() (bool, error) {
					out, err := exec.CommandContext(ctx, "lockstep", "status", args[0], "--view", view).Output()
					if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
						return false, err
					}
					return strings.HasPrefix(string(out), strings.Join(args, " ")), nil
				}))
			},
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv(viewVariable, view)
			return nil
		},
		RequireExplicitExec: true,
	})
}
