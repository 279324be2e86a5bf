package main

import (
	"context"
	"errors"
	"fmt"

	"lockstep/viewsvc"
)

// admitted is called when an exclusive client was let in, and before anything is served to it. A device that waited for
// this agent has caches of its own: if anybody else had the volume in between, they must not be written back.
func (a *attachment) admitted(ctx context.Context) error {
	if a.Shared {
		return nil
	}
	claim, err := a.claim(ctx)
	switch {
	case err != nil:
		return err
	case claim.Owner != a.Session:
		return a.ownedBy(claim)
	case a.Era != 0 && a.Era != claim.Era:
		return &goneError{fmt.Errorf("others had volume %s since %s was attached: what this machine knows of it is out of date", a.Volume, a.Device)}
	}
	a.Era = claim.Era
	return nil
}

// ownedBySomebody fails if another client has the volume to itself.
func (a *attachment) ownedBySomebody(ctx context.Context) error {
	claim, err := a.claim(ctx)
	if err != nil || claim.Owner == "" || claim.Owner == a.Session {
		return err
	}
	return a.ownedBy(claim)
}

// claim asks who has the volume to itself.
func (a *attachment) claim(ctx context.Context) (viewsvc.Claim, error) {
	client, err := a.views()
	if err != nil {
		return viewsvc.Claim{}, err
	}
	defer client.Close()
	st, err := findVolume(ctx, client, a.Volume)
	if err != nil {
		return viewsvc.Claim{}, explain(err, a.View)
	}
	return st.Volume.Claim, nil
}

// ownedBy is the end of an attachment to a volume that is another client's.
func (a *attachment) ownedBy(c viewsvc.Claim) error {
	return &goneError{withHint(fmt.Errorf("volume %s is attached exclusively by %v", a.Volume, c),
		"detach it there, or take it over: `lockstep attach --take-over`")}
}

// release gives the claim up, if it is still this attachment's. Its client must be gone.
func (a *attachment) release(ctx context.Context) error {
	if a.Shared {
		return nil
	}
	client, err := a.views()
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Claim(ctx, a.Volume, viewsvc.ClaimChange{Act: viewsvc.ClaimRelease, Owner: a.Session})
	if errors.Is(err, viewsvc.ErrNotFound) || errors.Is(err, viewsvc.ErrClaimed) {
		return nil // there is nothing of ours any more
	}
	return explain(err, a.View)
}

func (a *attachment) views() (*viewsvc.Client, error) {
	return dialViews(a.View, nil)
}
