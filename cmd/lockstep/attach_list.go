package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// attachReport is one line of `lockstep attach --list`. Its JSON is an interface: fields are added, never renamed.
type attachReport struct {
	Volume string `json:"volume"`
	Device string `json:"device"`
	// State is attached; waiting: its agent has ended, and requests wait; or gone: what is noted is not there any more.
	State    string `json:"state"`
	PID      int    `json:"pid"` // of the agent; 0 if none runs
	Size     uint64 `json:"size"`
	ReadOnly bool   `json:"read_only"`
	Shared   bool   `json:"shared"`
	InUse    string `json:"in_use"` // for what, as far as it can be seen; "" if not
}

func listAttached(w io.Writer, dir attachDir, asJSON bool) error {
	notes, err := dir.list()
	if err != nil {
		return fmt.Errorf("attach --list: %w", err)
	}
	reports := make([]attachReport, 0, len(notes))
	for _, a := range notes {
		reports = append(reports, reportAttached(dir, a))
	}
	if asJSON {
		return json.NewEncoder(w).Encode(reports)
	}
	if len(reports) == 0 {
		fmt.Fprintln(w, "nothing is attached; attach a volume: lockstep attach VOLUME")
		return nil
	}
	table(w, func(row func(...any)) {
		row("VOLUME", "DEVICE", "STATE", "AGENT", "SIZE", "MODE")
		for _, r := range reports {
			agent := "none: start `lockstep attach " + r.Volume + "` again"
			if r.PID > 0 {
				agent = fmt.Sprint("pid ", r.PID)
			}
			mode := choose(r.ReadOnly, "read-only", "read-write") + choose(r.Shared, ", shared", "")
			row(r.Volume, choose(r.Device == "", "-", r.Device), r.State, agent, formatSize(r.Size), mode)
		}
	})
	return nil
}

func reportAttached(dir attachDir, a *attachment) attachReport {
	r := attachReport{Volume: a.Volume, Device: a.Device, State: "gone", Size: a.Size, ReadOnly: a.ReadOnly, Shared: a.Shared}
	there := a.Fuse != "" && a.Device != ""
	if _, ok := a.nbd(); ok {
		there = true
	}
	lock, err := dir.lock(a.Volume)
	if err == nil {
		lock.Close()
	} else if errors.Is(err, errAgentRuns) {
		r.PID = a.PID
	}
	switch {
	case r.PID > 0 && a.Device == "":
		r.State = "attaching"
	case there && r.PID > 0:
		r.State = "attached"
	case there && a.Fuse == "":
		r.State = "waiting"
	}
	if there {
		r.InUse = usedFor(a.Device, a.PID)
	}
	return r
}
