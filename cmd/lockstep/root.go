package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// viewVariable names the environment variable that --view defaults to.
const viewVariable = "LOCKSTEP_VIEW"

// devView is where the view server of a `lockstep dev` listens, if that is free.
const devView = "127.0.0.1:7400"

// defaultView is the view service that is meant when none is named: that of the `lockstep dev` which was started in
// the working directory, at whatever port it found free; else that of any.
func defaultView() string {
	if layout, found, err := readLayout(devDefaultDir); found && err == nil {
		return layout.View
	}
	return devView
}

func newRoot(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:   "lockstep",
		Short: "A replicated block device",
		Long: `Lockstep serves virtual disks over NBD. Every write is on stable storage on every member of the
volume's view before it is acknowledged; when the primary dies a backup takes over.

Begin with: lockstep dev`,
		SilenceUsage:  true, // a runtime error is one line, not a page
		SilenceErrors: true, // report prints it
		Args:          wantSubcommand,
		RunE:          noSubcommand,
	}
	root.SetIn(env.stdin)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.SetFlagErrorFunc(flagError)
	addGroup(root, "roles", "Roles:", newDev(env), newViewd(env), newNode(env), newGateway(env))
	addGroup(root, "use", "Block devices:", newAttach(env), newDetach(env))
	addGroup(root, "operate", "Operation:", newVolume(env), newStatus(env), newViews(env), newEvents(env),
		newHandover(env), newVerify(env), newScrub(env), newForget(env))
	addGroup(root, "repair", "Inspection:", newWAL(env))
	addGroup(root, "self", "This program:", newVersion(env))
	root.SetHelpCommandGroupID("self")
	root.SetCompletionCommandGroupID("self")
	return root
}

func addGroup(root *cobra.Command, id, title string, commands ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: id, Title: title})
	for _, cmd := range commands {
		cmd.GroupID = id
	}
	root.AddCommand(commands...)
}

// flagError makes one line of what is wrong with a flag. The errors of our own values say what is right.
func flagError(cmd *cobra.Command, err error) error {
	var (
		bad    *pflag.InvalidValueError
		number *strconv.NumError
	)
	switch {
	case errors.As(err, &number) && errors.As(err, &bad):
		return usagef("%s: --%s: %q is not a number that fits here", commandName(cmd), bad.GetFlag().Name, number.Num)
	case errors.As(err, &bad):
		return usagef("%s: --%s: %w", commandName(cmd), bad.GetFlag().Name, errors.Unwrap(bad))
	}
	return &usageError{withHint(fmt.Errorf("%s: %w", commandName(cmd), err), "see `%s --help`", cmd.CommandPath())}
}

// commandName is a command's path without the program's name: what an error line begins with.
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), "lockstep ")
}

// wantArgs accepts exactly the named arguments; the name of one that may be missing stands in brackets.
func wantArgs(names ...string) cobra.PositionalArgs {
	required := 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			required++
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		var what error
		switch {
		case len(args) < required:
			what = fmt.Errorf("%s: %s is missing", commandName(cmd), names[len(args)])
		case len(args) > len(names):
			what = fmt.Errorf("%s: unexpected argument %q", commandName(cmd), args[len(names)])
		default:
			return nil
		}
		return &usageError{withHint(what, "see `%s --help`", cmd.CommandPath())}
	}
}

// wantSubcommand and noSubcommand are for commands that only group others.
func wantSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	what := fmt.Errorf("unknown command %q", strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), "lockstep")+" "+args[0]))
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return &usageError{withHint(what, "did you mean `%s %s`?", cmd.CommandPath(), near[0])}
	}
	return &usageError{withHint(what, "see `%s --help`", cmd.CommandPath())}
}

func noSubcommand(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// viewFlag adds --view to a command and returns what resolves it.
func viewFlag(cmd *cobra.Command, env *environment) func(fallback string) ([]string, error) {
	view := cmd.Flags().String("view", "", "view servers, HOST:PORT[,HOST:PORT...] (default $"+viewVariable+")")
	return func(fallback string) ([]string, error) {
		value, from := *view, "--view"
		if value == "" {
			value, from = env.getenv(viewVariable), "$"+viewVariable
		}
		if value == "" {
			value = fallback
		}
		if value == "" {
			return nil, &usageError{withHint(fmt.Errorf("%s: no view server given", commandName(cmd)),
				"pass --view HOST:PORT or set $%s", viewVariable)}
		}
		servers, err := parseServers(value)
		if err != nil {
			return nil, usagef("%s: %s: %w", commandName(cmd), from, err)
		}
		return servers, nil
	}
}
