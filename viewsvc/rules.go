package viewsvc

import "slices"

// nextView is the view that a proposal asks for, or the reason why it may not be (V1 to V9 of doc.go). It is
// all that stands between a wrong decision, wherever made, and the data: it looks at replicated state only.
//
// Invariant: primary(n+1) ∈ members(n), and members(n+1) ⊆ members(n) ∪ {added by primary(n)}; Force excepted.
func nextView(v *volumeState, p Proposal) (View, error) {
	cur := v.View
	if err := checkCommon(v, p); err != nil {
		return View{}, err
	}
	next := View{
		Volume:      cur.Volume,
		Num:         cur.Num + 1,
		Tenure:      cur.Num + 1, // Add and Remove keep the present one
		Primary:     p.Primary,
		Backups:     slices.Clone(p.Backups),
		DataLossGen: cur.DataLossGen,
	}
	var err error
	switch p.Kind {
	case KindFirst:
		err = checkFirst(v, next)
	case KindAdd:
		next.Tenure = cur.Tenure
		err = checkAdd(v, p, next)
	case KindRemove:
		next.Tenure = cur.Tenure
		err = checkRemove(v, p, next)
	case KindPromote:
		err = checkSuccessor("V5", v, p, next)
	case KindResume:
		err = checkResume(v, p, next)
	case KindHandover:
		if err = checkOffice("V7", v, p); err == nil {
			err = checkSuccessor("V7", v, p, next)
		}
	case KindForce:
		next.DataLossGen++
		err = checkForce(v, p, next)
	default:
		err = ruleErrorf("V1", "kind %q is unknown", p.Kind)
	}
	if err != nil {
		return View{}, err
	}
	return next, nil
}

// checkCommon holds V1, V9 and the second half of V2.
func checkCommon(v *volumeState, p Proposal) error {
	cur := v.View
	switch {
	case p.Expect > cur.Num:
		return ruleErrorf("V9", "the proposal expects view %d, but this service made only %d of volume %s: its state was lost or rolled back",
			p.Expect, cur.Num, v.Volume.Name)
	case p.Expect < cur.Num:
		return &ConflictError{Current: cur}
	case cur.Num == 0 && p.Kind != KindFirst:
		return ruleErrorf("V2", "volume %s has no view yet", v.Volume.Name)
	case len(p.Backups) >= maxMembers:
		return ruleErrorf("V1", "%d members are too many", len(p.Backups)+1)
	}
	members := append([]ReplicaID{p.Primary}, p.Backups...)
	for i, r := range members {
		if _, ok := v.Replicas[r]; !ok {
			return ruleErrorf("V1", "replica %q is not registered for volume %s", r, v.Volume.Name)
		}
		if slices.Contains(members[:i], r) {
			return ruleErrorf("V1", "replica %s is named twice", r)
		}
	}
	return nil
}

// maxMembers bounds a view: a volume can have more replicas than copies, but a view has no use for them.
const maxMembers = 2 * MaxCopies

func checkFirst(v *volumeState, next View) error {
	switch {
	case v.View.Num != 0:
		return ruleErrorf("V2", "volume %s had its first view", v.Volume.Name)
	case !v.present(next.Primary):
		return ruleErrorf("V2", "replica %s was superseded", next.Primary)
	case len(next.Backups) != 0:
		return ruleErrorf("V2", "a first view has no backups: they hold nothing yet")
	}
	return nil
}

// checkOffice tells whether the proposer is the primary process that holds office. Without the tenure a primary
// that restarted could act on what its predecessor knew.
func checkOffice(rule string, v *volumeState, p Proposal) error {
	switch {
	case p.From != v.View.Primary:
		return ruleErrorf(rule, "only the primary %s may propose that, not %q", v.View.Primary, p.From)
	case p.Tenure != v.View.Tenure:
		return ruleErrorf(rule, "the tenure is %d, not %d", v.View.Tenure, p.Tenure)
	}
	return nil
}

func checkAdd(v *volumeState, p Proposal, next View) error {
	if err := checkOffice("V3", v, p); err != nil {
		return err
	}
	if next.Primary != v.View.Primary {
		return ruleErrorf("V3", "an addition keeps the primary")
	}
	for _, r := range v.View.Backups {
		if !next.Has(r) {
			return ruleErrorf("V3", "an addition keeps every member; %s is missing", r)
		}
	}
	if len(next.Backups) == len(v.View.Backups) {
		return ruleErrorf("V3", "nobody is added")
	}
	for _, r := range next.Backups {
		if !v.View.Has(r) && !v.present(r) {
			return ruleErrorf("V3", "replica %s was superseded", r)
		}
	}
	return nil
}

func checkRemove(v *volumeState, p Proposal, next View) error {
	if err := checkOffice("V4", v, p); err != nil {
		return err
	}
	if next.Primary != v.View.Primary {
		return ruleErrorf("V4", "a removal keeps the primary")
	}
	if len(next.Backups) >= len(v.View.Backups) {
		return ruleErrorf("V4", "nobody is removed")
	}
	return checkSubset("V4", v.View, next)
}

// checkSuccessor is for a new primary out of the members.
func checkSuccessor(rule string, v *volumeState, p Proposal, next View) error {
	if rule == "V5" && p.From != "" {
		return ruleErrorf(rule, "only the view service promotes, not %q", p.From)
	}
	if next.Primary == v.View.Primary {
		return ruleErrorf(rule, "replica %s is the primary already", next.Primary)
	}
	return checkSubset(rule, v.View, next)
}

func checkResume(v *volumeState, p Proposal, next View) error {
	switch {
	case p.From != "":
		return ruleErrorf("V6", "only the view service resumes a primary, not %q", p.From)
	case next.Primary != v.View.Primary:
		return ruleErrorf("V6", "the primary is %s, not %s", v.View.Primary, next.Primary)
	}
	return checkSubset("V6", v.View, next)
}

func checkForce(v *volumeState, p Proposal, next View) error {
	switch {
	case p.From != "":
		return ruleErrorf("V8", "only an operator forces, not %q", p.From)
	case !v.present(next.Primary):
		return ruleErrorf("V8", "replica %s is not the present copy of an assigned node", next.Primary)
	case next.Primary == v.View.Primary && len(next.Backups) == len(v.View.Backups):
		return ruleErrorf("V8", "that is the present view; it needs no force")
	}
	for _, r := range next.Backups {
		if !v.View.Has(r) {
			return ruleErrorf("V8", "replica %s is no member of view %d", r, v.View.Num)
		}
	}
	return nil
}

// checkSubset is invariant I2 but for additions.
func checkSubset(rule string, cur, next View) error {
	for _, r := range next.Members() {
		if !cur.Has(r) {
			return ruleErrorf(rule, "replica %s is no member of view %d", r, cur.Num)
		}
	}
	return nil
}
