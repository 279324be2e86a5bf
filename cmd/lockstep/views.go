package main

import (
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
}

func newViews(env *environment) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "views VOLUME",
		Short: "Tell a volume's history: who was primary, and why that changed",
		Args:  wantArgs("VOLUME"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, oldest view first; its shape is stable")
	connect := operatorFlags(cmd, env)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, servers, err := connect()
		if err != nil {
			return err
		}
		defer client.Close()
		history, err := client.Views(cmd.Context(), args[0])
		if err != nil {
			return explain(err, servers)
		}
		cluster, err := client.Status(cmd.Context())
		if err != nil {
			return explain(err, servers)
		}
		var peers []viewsvc.Peer
		for _, v := range cluster.Volumes {
			if v.Volume.Name == args[0] {
				peers = v.Peers
			}
		}
		rows := newHistory(history, peers)
		if asJSON {
			return writeJSON(env.stdout, rows)
		}
		writeHistory(env.stdout, rows)
		return nil
	}
	return cmd
}

func newHistory(history []viewsvc.HistoryEntry, peers []viewsvc.Peer) []historyReport {
	nodeOf := nodeNames(peers)
	rows := make([]historyReport, 0, len(history))
	for _, h := range history {
		row := historyReport{
			Num:     uint64(h.View.Num),
			Tenure:  uint64(h.View.Tenure),
			Primary: nodeOf(h.View.Primary),
			Backups: []string{},
			Reason:  h.Reason,
			Time:    h.Time,
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
