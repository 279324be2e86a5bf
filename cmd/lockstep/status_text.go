package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"lockstep/viewsvc"
)

// writeStatus renders a report for people: for each volume a verdict, then its replicas; then nodes and view servers.
func writeStatus(w io.Writer, report statusReport) {
	if len(report.Volumes) == 0 {
		fmt.Fprintln(w, "no volumes; make one: lockstep volume create NAME --size 10G")
	}
	for _, v := range report.Volumes {
		fmt.Fprintln(w, verdictLine(v))
	}
	for _, v := range report.Volumes {
		fmt.Fprintf(w, "\n%s, %s, sync %s, view %d of tenure %d\n", v.Name, formatSize(v.Size), v.Sync, v.View.Num, v.View.Tenure)
		writeReplicas(w, v)
	}
	fmt.Fprintln(w)
	table(w, func(row func(...any)) {
		row("NODE", "STATE", "PID", "PEERS AT", "NBD AT")
		for _, n := range report.Nodes {
			row(n.ID, choose(n.Alive, "alive", "down"), n.PID, n.Addr, n.NBD)
		}
	})
	fmt.Fprintln(w)
	table(w, func(row func(...any)) {
		row("VIEW SERVER", "AT", "")
		for _, s := range report.Viewd {
			row(s.ID, s.Addr, choose(s.Leader, "leader", ""))
		}
	})
}

func writeReplicas(w io.Writer, v volumeReport) {
	table(w, func(row func(...any)) {
		row("  NODE", "ROLE", "LOG END", "COMMIT", "APPLIED", "LAG", "REPLICA")
		for _, r := range v.Replicas {
			row("  "+r.Node, r.Role, r.LogEnd, r.Commit, r.Applied, formatSize(r.LagBytes), r.Replica)
		}
	})
}

// verdictLine is the line that an operator looks for first.
func verdictLine(v volumeReport) string {
	var line strings.Builder
	fmt.Fprintf(&line, "%s %s", v.Name, strings.ToUpper(string(v.State)))
	switch v.State {
	case stateSafe:
		fmt.Fprintf(&line, " view %d primary %s", v.View.Num, v.View.Primary)
		if len(v.View.Backups) > 0 {
			fmt.Fprintf(&line, " backups %s", strings.Join(v.View.Backups, ","))
		}
		fmt.Fprintf(&line, " lag %s", lag(v))
	case stateDegraded:
		fmt.Fprintf(&line, ": survives %d more %s", v.verdict.survives, choose(v.verdict.survives == 1, "failure", "failures"))
	case stateUnavailable:
		fmt.Fprintf(&line, ": %s", v.verdict.why)
	}
	if v.State != stateSafe && !v.verdict.deleting {
		for _, r := range v.Replicas {
			line.WriteString(learning(r))
		}
		for _, t := range v.Troubles {
			fmt.Fprintf(&line, "; %s has no copy: %s", t.Node, t.Error)
		}
		if missing := v.Copies - len(v.Replicas) - len(v.Troubles); missing > 0 && v.View.Num > 0 {
			fmt.Fprintf(&line, "; no node has %s of the %d copies yet", choose(missing == 1, "one", fmt.Sprint(missing)), v.Copies)
		}
	}
	for _, r := range v.Replicas {
		if r.Full {
			fmt.Fprintf(&line, "; %s's disk is full", r.Node)
		}
	}
	return line.String()
}

// lag is what the slowest backup lacks.
func lag(v volumeReport) string {
	var most uint64
	for _, r := range v.Replicas {
		if r.Role != roleDown && r.Progress == 1 {
			most = max(most, r.LagBytes)
		}
	}
	if most == 0 {
		return "0"
	}
	return formatSize(most)
}

// learning tells what keeps a replica from being a member, or how it gets on at becoming one: `; n3 copying 41 % 210
// MB/s, 12 s left`.
func learning(r replicaReport) string {
	switch r.Role {
	case roleDown:
		return fmt.Sprintf("; %s down", r.Node)
	case string(viewsvc.RolePoisoned):
		return fmt.Sprintf("; %s poisoned: %s", r.Node, r.Error)
	}
	if r.Progress == 1 {
		return ""
	}
	if r.rate <= 0 || r.ETASeconds == nil {
		return fmt.Sprintf("; %s %s", r.Node, r.Role)
	}
	left := time.Duration(*r.ETASeconds) * time.Second
	text := fmt.Sprintf("%.0f s", left.Seconds())
	if left >= 2*time.Minute {
		text = fmt.Sprintf("%.0f min", left.Minutes())
	}
	return fmt.Sprintf("; %s copying %.0f %% %.0f MB/s, %s left", r.Node, r.Progress*100, r.rate/1e6, text)
}

// table aligns what rows prints in columns.
func table(w io.Writer, rows func(row func(cells ...any))) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows(func(cells ...any) {
		texts := make([]string, len(cells))
		for i, c := range cells {
			texts[i] = fmt.Sprint(c)
		}
		fmt.Fprintln(tab, strings.TrimRight(strings.Join(texts, "\t"), "\t"))
	})
	tab.Flush()
}

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
