package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

const (
	// operatorPatience is how long a command waits while the view servers elect a leader: longer than that takes if more
	// than half of them run and reach each other.
	operatorPatience = 10 * time.Second
	// silentPatience is how long it waits while none of them answers at all.
	silentPatience = 3 * time.Second
)

// dialViews makes a client of the view service for a command. It says on notices what it waits for; nil is allowed.
func dialViews(servers []string, notices io.Writer) (*viewsvc.Client, error) {
	o := viewsvc.ClientOptions{Servers: servers, CallTimeout: operatorPatience, SilentTimeout: silentPatience}
	if notices != nil {
		o.OnElection = func() {
			fmt.Fprintf(notices, "lockstep: none of the view servers leads; waiting up to %v for their election\n", operatorPatience)
		}
	}
	return viewsvc.NewClient(o)
}

// operator is the connection of one operator's command to the view service.
type operator struct {
	*viewsvc.Client
	servers []string
}

// operate makes an operator's command of the work that it does: it resolves --view, connects, and puts what an operator
// can do behind the error that the work ends with.
func operate(cmd *cobra.Command, env *environment, work func(ctx context.Context, view *operator, args []string) error) *cobra.Command {
	servers := viewFlag(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := servers(defaultView())
		if err != nil {
			return err
		}
		client, err := dialViews(list, env.stderr)
		if err != nil {
			return err
		}
		defer client.Close()
		view := &operator{client, list}
		return explain(work(cmd.Context(), view, args), list)
	}
	cmd.ValidArgsFunction = completeVolumes(servers)
	return cmd
}

// completionPatience is how long a shell waits for the names that it is to offer.
const completionPatience = 500 * time.Millisecond

// completeVolumes offers the names of volumes to a shell: the only argument that an operator's command has.
func completeVolumes(servers func(fallback string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		list, err := servers(defaultView())
		if err != nil || len(args) > 0 || cmd.ValidateArgs([]string{"x"}) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, err := viewsvc.NewClient(viewsvc.ClientOptions{Servers: list, CallTimeout: completionPatience})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer client.Close()
		cluster, err := client.Status(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, vs := range cluster.Volumes {
			if !vs.Deleting {
				names = append(names, vs.Volume.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// explain puts what an operator can do behind an error of the view service.
func explain(err error, servers []string) error {
	var known *hint
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, viewsvc.ErrLeaderless):
		return withHint(fmt.Errorf("a view server answers, but none of %s leads", strings.Join(servers, ",")),
			"more than half of the view servers have to run and reach each other; start the others")
	case errors.Is(err, viewsvc.ErrNoLeader):
		return withHint(fmt.Errorf("no view server answers at %s", strings.Join(servers, ",")),
			"start one (`lockstep viewd`, `lockstep dev`), or name another with --view or $%s", viewVariable)
	case errors.Is(err, viewsvc.ErrTimeout):
		return withHint(err, "see `lockstep status`")
	}
	return err // the service's own errors say what to do
}

// volume finds a volume by its name.
func (o *operator) volume(ctx context.Context, name string) (viewsvc.VolumeStatus, error) {
	return findVolume(ctx, o.Client, name)
}

func findVolume(ctx context.Context, client *viewsvc.Client, name string) (viewsvc.VolumeStatus, error) {
	cluster, err := client.Status(ctx)
	if err != nil {
		return viewsvc.VolumeStatus{}, err
	}
	for _, vs := range cluster.Volumes {
		// The name of a volume that is being deleted is free for another.
		if vs.Volume.Name == name && !vs.Deleting {
			return vs, nil
		}
	}
	return viewsvc.VolumeStatus{}, noVolume(name)
}

// noVolumeError says that a view service has no volume of that name. It is a viewsvc.ErrNotFound.
type noVolumeError struct{ name string }

func (e *noVolumeError) Error() string { return fmt.Sprintf("there is no volume %q", e.name) }
func (e *noVolumeError) Unwrap() error { return viewsvc.ErrNotFound }

func noVolume(name string) error { return withHint(&noVolumeError{name}, "see `lockstep volume list`") }
