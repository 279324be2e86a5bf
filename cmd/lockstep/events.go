package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

// eventReport is a line of `lockstep events --json`; as in status_json.go, fields are added only.
type eventReport struct {
	Time    time.Time         `json:"time"`
	Kind    viewsvc.EventKind `json:"kind"`
	Volume  string            `json:"volume,omitempty"`
	Node    string            `json:"node,omitempty"`
	View    uint64            `json:"view,omitempty"`
	Tenure  uint64            `json:"tenure,omitempty"`
	Change  viewsvc.Kind      `json:"change,omitempty"` // kind "view": first, add, remove, promote, resume, handover, force
	Primary string            `json:"primary,omitempty"`
	Backups []string          `json:"backups,omitempty"`
	Text    string            `json:"text,omitempty"`
	Error   string            `json:"error,omitempty"`
}

func newEvents(env *environment) *cobra.Command {
	var follow, asJSON bool
	cmd := &cobra.Command{
		Use:   "events [VOLUME]",
		Short: "Tell what happened: views, failures, recruits, forced promotions",
		Long: `Tell what happened, oldest first. Every view of every volume is remembered by all view servers; what else the leading
one noticed, nodes that died or came back above all, is remembered for as long as it leads.`,
		Args: wantArgs("[VOLUME]"),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as things happen, until interrupted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, an object a line; its shape is stable")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		volume := ""
		if len(args) == 1 {
			volume = args[0]
		}
		show := func(list []eventReport) (err error) {
			for _, e := range list {
				if volume == "" || e.Volume == volume {
					err = errors.Join(err, writeEvent(env.stdout, e, asJSON))
				}
			}
			return err
		}
		past, last, err := pastEvents(ctx, view, volume)
		if err != nil {
			return err
		}
		if err := show(past); err != nil || !follow {
			return err
		}
		return followEvents(ctx, view, last, show)
	})
}

// pastEvents merges the histories of the volumes with what the leader remembers, and gives the leader's last number.
func pastEvents(ctx context.Context, view *operator, volume string) ([]eventReport, uint64, error) {
	recent, err := view.Events(ctx, 0, false)
	if err != nil {
		return nil, 0, err
	}
	cluster, err := view.Status(ctx)
	if err != nil {
		return nil, 0, err
	}
	var all []eventReport
	known := map[string]bool{} // volumes that have a history
	for _, vs := range cluster.Volumes {
		if vs.Deleting || volume != "" && vs.Volume.Name != volume {
			continue
		}
		history, err := view.Views(ctx, vs.Volume.Name)
		if errors.Is(err, viewsvc.ErrNotFound) {
			continue // deleted a moment ago
		}
		if err != nil {
			return nil, 0, err
		}
		known[vs.Volume.Name] = true
		for _, r := range newHistory(history) {
			all = append(all, eventReport{Time: r.Time, Kind: viewsvc.EventView, Volume: vs.Volume.Name, View: r.Num, Tenure: r.Tenure,
				Change: r.kind, Primary: r.Primary, Backups: r.Backups, Text: r.Reason})
		}
	}
	if volume != "" && !known[volume] {
		return nil, 0, noVolume(volume)
	}
	last := uint64(0)
	for _, e := range recent {
		last = max(last, e.Seq)
		if e.Kind != viewsvc.EventView || !known[e.Volume] {
			all = append(all, newEventReport(e))
		}
	}
	slices.SortStableFunc(all, func(a, b eventReport) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.View, b.View))
	})
	return all, last, nil
}

// followEvents waits for what happens next. A view service that does not answer for a while is not the end of it.
func followEvents(ctx context.Context, view *operator, last uint64, show func([]eventReport) error) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	for ctx.Err() == nil {
		recent, err := view.Events(ctx, last, true)
		if errors.Is(err, viewsvc.ErrNoLeader) {
			continue // the client took its time to find that out
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, e := range recent {
			last = max(last, e.Seq)
			if err := show([]eventReport{newEventReport(e)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func newEventReport(e viewsvc.RecentEvent) eventReport {
	r := eventReport{Time: e.Time, Kind: e.Kind, Volume: e.Volume, Node: string(e.Node), View: uint64(e.View), Tenure: uint64(e.Tenure),
		Change: e.Change, Primary: string(e.Primary), Text: e.Text, Error: e.Error}
	for _, b := range e.Backups {
		r.Backups = append(r.Backups, string(b))
	}
	return r
}

func writeEvent(w io.Writer, e eventReport, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	_, err := fmt.Fprintf(w, "%s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), eventText(e))
	return err
}

// eventText is an event as a sentence, the volume or node that it is about first.
func eventText(e eventReport) string {
	var s strings.Builder
	switch {
	case e.Volume != "" && e.Node != "":
		fmt.Fprintf(&s, "%s on %s: ", e.Volume, e.Node)
	case e.Volume != "" || e.Node != "":
		fmt.Fprintf(&s, "%s: ", e.Volume+e.Node)
	}
	if e.Kind != viewsvc.EventView {
		s.WriteString(eventPhrase(e.Kind))
	} else {
		if e.Change == viewsvc.KindForce {
			s.WriteString("FORCED, DATA MAY BE LOST: ")
		}
		fmt.Fprintf(&s, "view %d, %s: primary %s", e.View, e.Change, e.Primary)
		if len(e.Backups) > 0 {
			fmt.Fprintf(&s, ", backups %s", strings.Join(e.Backups, " "))
		}
	}
	for _, more := range []string{e.Text, e.Error} {
		if more != "" && more != e.Volume {
			fmt.Fprintf(&s, " (%s)", more)
		}
	}
	return s.String()
}

// eventPhrase says what became of the volume or node that an event is about.
func eventPhrase(k viewsvc.EventKind) string {
	switch k {
	case viewsvc.EventLeading:
		return "this view server leads from now on"
	case viewsvc.EventVolumeCreated:
		return "created"
	case viewsvc.EventVolumeDeleted:
		return "deleted"
	case viewsvc.EventVolumeResize:
		return "wanted larger"
	case viewsvc.EventVolumeGrown:
		return "has become larger"
	case viewsvc.EventCopyDropped:
		return "is to remove its copy"
	case viewsvc.EventVolumeGone:
		return "its last copy is gone"
	case viewsvc.EventVolumeRefused:
		return "NO VIEW IS MADE FOR IT"
	case viewsvc.EventBelow:
		return "LACKS WRITES THAT IT ACKNOWLEDGED"
	case viewsvc.EventUnknownVolume:
		return "holds a copy of a volume that never was"
	case viewsvc.EventNodeAlive:
		return "alive"
	case viewsvc.EventNodeRestarted:
		return "restarted"
	case viewsvc.EventNodeDead:
		return "dead"
	case viewsvc.EventNodeForgotten:
		return "forgotten"
	case viewsvc.EventNodeRefused:
		return "refused"
	case viewsvc.EventReplica:
		return "has made its copy"
	}
	return strings.ReplaceAll(string(k), "_", " ")
}
