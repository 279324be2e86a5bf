package viewsvc

import "fmt"

// OrderCheck orders a comparison of a volume's members, or a scrub of all its replicas. A later order takes its place.
func (m *Monitor) OrderCheck(name string, scrub bool) (CheckOrder, error) {
	v, w, err := m.named(name)
	if err != nil {
		return CheckOrder{}, err
	}
	if rep, ok := m.report(v, v.View.Primary); !ok || rep.Role != RolePrimary {
		return CheckOrder{}, fmt.Errorf("%w: volume %s has no open primary; `lockstep status %s` shows why", ErrInvalid, name, name)
	}
	o := CheckOrder{ID: m.number(), Scrub: scrub}
	w.check = &o
	m.settle(v.Volume.ID) // which drops an order that nobody is there to carry out
	return o, nil
}

// checkDone tells whether all that can carry an order out have done so.
func (m *Monitor) checkDone(v *volumeState, c *CheckOrder) bool {
	for _, a := range v.Assigned {
		if a.Replica == "" || !m.healthy(v, a.Replica) || !c.Scrub && a.Replica != v.View.Primary {
			continue
		}
		if rep, _ := m.report(v, a.Replica); rep.Check == nil || rep.Check.ID != c.ID || !rep.Check.Finished {
			return false
		}
	}
	return true
}
