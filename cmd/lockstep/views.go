package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

// historyReport is a row of `lockstep views --json`; like status_json.go's types it is an interface to other programs.
type historyReport struct {
	Num     uint64    `json:"num"`
	Tenure  uint64    `json:"tenure"`
	Primary string    `json:"primary"` // node
	Backups []string  `json:"backups"` // nodes
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"`

	kind viewsvc.Kind // for `lockstep events`
}

func newViews(env *environment) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "views VOLUME",
		Short: "Tell a volume's history: who was primary, and why that changed",
		Args:  wantArgs("VOLUME"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, oldest view first; its shape is stable")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		history, err := view.Views(ctx, args[0])
		if err != nil {
			return err
		}
		rows := newHistory(history)
		if asJSON {
			return writeJSON(env.stdout, rows)
		}
		writeHistory(env.stdout, rows)
		return nil
	})
}

func newHistory(history []viewsvc.HistoryEntry) []historyReport {
	rows := make([]historyReport, 0, len(history))
	for _, h := range history {
		nodeOf := func(r viewsvc.ReplicaID) string {
			if n := h.Nodes[r]; n != "" {
				return string(n)
			}
			return string(r) // of a view server of an older release
		}
		row := historyReport{
			Num:     uint64(h.View.Num),
			Tenure:  uint64(h.View.Tenure),
			Primary: nodeOf(h.View.Primary),
			Backups: []string{},
			Reason:  h.Reason,
			Time:    h.Time,
			kind:    h.Kind,
		}
		for _, b := range h.View.Backups {
			row.Backups = append(row.Backups, nodeOf(b))
		}
		if row.Reason == "" {
			row.Reason = string(h.Kind)
		}
		rows = append(rows, row)
	}
	return rows
}

func writeHistory(w io.Writer, rows []historyReport) {
	table(w, func(row func(...any)) {
		row("VIEW", "TENURE", "TIME", "PRIMARY", "BACKUPS", "REASON")
		for _, r := range rows {
			backups := strings.Join(r.Backups, ",")
			if backups == "" {
				backups = "-"
			}
			row(r.Num, r.Tenure, r.Time.Format("2006-01-02 15:04:05.000"), r.Primary, backups, fmt.Sprint(r.Reason))
		}
	})
}
