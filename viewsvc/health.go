package viewsvc

import "time"

// A disk that hangs fails nothing: its node pings on, and every write of its volumes waits (hazard 10). Its replicas
// report the age of the oldest log write that is under way. One that is older than sickAge makes a replica sick; a
// sick one is replaced as primary if another member is well, is promoted last, and is not recruited. It is well again
// when it has reported nothing older than wellAge for WellAfter, so that a disk that hangs now and then does not move
// its volumes each time.
const (
	sickAge   = 2 * time.Second
	wellAge   = sickAge / 4
	wellAfter = 10 * time.Second
)

// sickness is what is known of a replica that was sick.
type sickness struct {
	calm timer // its log writes are young
}

// noteHealth looks at a replica's newest report.
func (m *Monitor) noteHealth(w *volumeWatch, r ReplicaReport) {
	age := time.Duration(r.OldestIO) * time.Millisecond
	s := w.sick[r.Replica]
	switch {
	case age >= sickAge && s == nil:
		w.sick[r.Replica] = &sickness{}
		m.event(Event{Kind: EventSick, Volume: r.Volume, Replica: r.Replica, Text: "a log write has been under way for " + age.String()})
	case s != nil && s.calm.held(m.now, age < wellAge) >= m.opt.WellAfter:
		delete(w.sick, r.Replica)
		m.event(Event{Kind: EventWell, Volume: r.Volume, Replica: r.Replica})
	}
}

// sick tells whether a replica's disk hangs, or did not long ago.
func (m *Monitor) sick(v *volumeState, r ReplicaID) bool {
	w := m.volumes[v.Volume.ID]
	return w != nil && w.sick[r] != nil
}

// impaired tells whether a replica is sick, or its disk is full: others do better, and it is not recruited.
func (m *Monitor) impaired(v *volumeState, r ReplicaID) bool {
	rep, _ := m.report(v, r)
	return rep.Full || m.sick(v, r)
}

// well are those replicas of a list that are not impaired.
func (m *Monitor) well(v *volumeState, list []ReplicaID) []ReplicaID {
	var out []ReplicaID
	for _, r := range list {
		if !m.impaired(v, r) {
			out = append(out, r)
		}
	}
	return out
}
