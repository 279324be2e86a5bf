package main

import (
	"runtime"
	"slices"
	"testing"

	"lockstep/blockdev/nbd"
	"lockstep/replication/gateway"
)

// A gateway has a P for each client that it has, and at most as many as it had by itself.
func TestGatewayHasAPForEachClient(t *testing.T) {
	come := gateway.Event{Kind: gateway.EventClient, Client: nbd.Event{Kind: nbd.EventAttached}}
	leave := gateway.Event{Kind: gateway.EventClient, Client: nbd.Event{Kind: nbd.EventDetached}}
	refused := gateway.Event{Kind: gateway.EventClient, Client: nbd.Event{Kind: nbd.EventRefused}}
	for name, c := range map[string]struct {
		perClient int
		want      []int
	}{
		"plain":     {1, []int{1, 2, 3, 2, 1}},
		"encrypted": {2, []int{2, 3, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var set []int
			passed := 0
			p := &clientProcs{set: func(n int) { set = append(set, n) }, perClient: c.perClient, most: 3, now: 8}
			p.count(0)
			hear := p.follow(func(gateway.Event) { passed++ })
			events := []gateway.Event{come, refused, come, come, come, come, leave, leave, leave, leave, leave, {Kind: gateway.EventUp}}
			for _, e := range events {
				hear(e)
			}
			if !slices.Equal(set, c.want) {
				t.Errorf("set to %v, want %v", set, c.want)
			}
			if passed != len(events) {
				t.Errorf("%d of %d events passed on", passed, len(events))
			}
		})
	}
}

// A gateway without clients needs one P; but what the user has set stays.
func TestGatewayKeepsTheUsersNumberOfPs(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	for _, c := range []struct {
		users string
		want  int
	}{{"3", 3}, {"", 1}} {
		newClientProcs(&environment{getenv: func(string) string { return c.users }}, false)
		if now := runtime.GOMAXPROCS(0); now != c.want {
			t.Errorf("GOMAXPROCS=%q: %d Ps, want %d", c.users, now, c.want)
		}
	}
}
