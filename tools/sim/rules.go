package main

import "lockstep/tools/mutant"

// rules are the rules of the protocol, one by one: those that a simulated cluster shows soon to be missing. Some rules
// have another behind them there, and are broken where there is less in the way:
//
//   - A backup takes frames of a view that it has left: its Ack says in which tenure it is, and counts for nothing; the new
//     primary cuts what it took. (noaccepts in the random walk of package replication, notenure in package mutant)
//   - A primary goes on in a new tenure with what it knew in another: a primary that was replaced comes back as a learner
//     first, and forgets everything then. (carried in package mutant)
//   - A write is ordered though there are fewer than min_copies members: it is not answered before there are enough.
//   - A tenure begins without a VIEW record: whoever reads or writes there waits for the members' answers, which come by streams
//     that have cut their logs. A tail of an earlier tenure that comes back all the same was never answered, and nothing
//     was read without it. (noviewrec in the random walk, for which a write that a primary opened without is dead)
//   - A new primary commits before its VIEW record has its place. (commitearly in package mutant)
//   - A primary relies on grants that it gave back: a handover leaves it a member, so that the next primary does not open
//     before it has left its tenure, and nobody replaces a member sooner than after T_dead, when every grant is over.
//     (keepreturned in the random walk, whose view service does not wait)
//   - A backup confirms a view that it has left: it looks before it takes a message, and that is after the read was taken.
//     (confirmany in the random walk, which breaks that too)
//   - A primary lets clients in before orders of its own tenure have told it who has the volume for himself: it hears of its
//     tenure by these orders, all but always. (claimearly in package mutant)
//   - A session goes on that a claim has ended: its own gateway, which hears of the claim as well, ends it in the same moment,
//     all but always. (noeviction in package mutant)
//   - The bytes of a client that is gone are given free at once (G5), while its session is fenced all the same. (noghosts in
//     package mutant)
//   - A primary that forgot its tenure begins it again: for that no replica may have been added to its view since, and it has to
//     be below the floor already, which 2000 seeds did not show. (TestReplicaBelowTheFloorDoesNotTakeOffice)
//   - A region copy leaves out which requests were carried out (R1): whoever was copied has to be primary while a gateway still
//     repeats what it was not answered before the copy, and another client has to have written over that; one seed in a
//     thousand and more. (nosessions in package mutant)
//   - A session attaches with an older generation (R3): a gateway sends nothing before it was let in, and what an older
//     connection carries is fenced. (oldgeneration in package mutant)
var rules = []rule{
	{"openearly", "pause,kill,slowdisk", 1, []edit{ // a primary opens before its first record is everywhere
		{"replication/core_primary.go", "|| c.commit < c.openAt ||", "|| c.commit < c.openAt && " + mutant.Off("openearly") + " ||"}}},
	{"ackwritten", "power,blackout,slowdisk", 1, []edit{ // what is written counts, in sync mode always
		{"replication/core_primary.go", "	if c.CommitsWritten() {\n		commit = c.written", "	if c.CommitsWritten() || " + mutant.On("ackwritten") + " {\n		commit = c.written"}}},
	{"ackearly", "power,blackout", 1, []edit{ // a backup acknowledges before it synced
		{"replication/follow.go", "if err := f.storage(r.syncStore()); err != nil {", "if err := f.storage(r.syncStore()); " + mutant.Off("ackearly") + " && err != nil {"},
		{"replication/replica.go", "	began := r.rt.Now()\n	err := r.store.Sync()\n", "	if " + mutant.On("ackearly") + " && r.core.State() == StateBackup {\n return nil\n }\n	began := r.rt.Now()\n	err := r.store.Sync()\n"}}},
	{"promoteany", "kill,wipe,isolate", 1, []edit{ // the view service promotes a replica that is no member
		{"viewsvc/plan.go", "for _, r := range v.View.Backups {\n		if m.healthy(v, r) && !m.below(v, r) {\n			rep, _", "for r := range v.Replicas {\n		if m.healthy(v, r) && !m.below(v, r) && r != v.View.Primary && (v.View.Has(r) || " + mutant.On("promoteany") + ") {\n			rep, _"},
		{"viewsvc/rules.go", "		if !cur.Has(r) {\n			return ruleErrorf(rule", "		if !cur.Has(r) && " + mutant.Off("promoteany") + " {\n			return ruleErrorf(rule"}}},
	{"promotesuspect", "power,kill,pause,isolate", 1, []edit{ // a suspect is promoted while a sound member may come back
		{"viewsvc/plan.go", "m.report(v, next); !rep.Suspect {", "m.report(v, next); !rep.Suspect || " + mutant.On("promotesuspect") + " {"}}},
	{"resumesame", "kill,power", 1, []edit{ // a restarted primary goes on in its old tenure
		{"replication/core.go", "		c.state = StateRecovering\n	case s.View.Has", "		c.state = StateRecovering\n		if " + mutant.On("resumesame") + " {\n c.state = StateOpen\n c.require()\n c.emit(Effect{Kind: EffectTargets})\n }\n	case s.View.Has"},
		{"replication/replica.go", "	r.core.SetSync(hard.Volume.Sync)\n", "	r.core.SetSync(hard.Volume.Sync)\n	if " + mutant.On("resumesame") + " {\n r.begun = hard.View.Tenure\n }\n"}}},
	{"blank", "wipe,kill", 1, []edit{ // an empty disk goes by the name of the one before
		{"tools/sim/node.go", "	m.copies++\n", "	if m.copies == 0 || " + mutant.Off("blank") + " {\n m.copies++\n }\n"}}},
	{"addbehind", "kill,pause,slowlink,reset", 1, []edit{ // a learner is added that lacks committed records
		{"replication/core_propose.go", "c.state != StateOpen || p.durable < c.commit {", "c.state != StateOpen || p.durable < c.commit && " + mutant.Off("addbehind") + " {"},
		{"replication/core_primary.go", "			commit = min(commit, p.durable)\n", "			if " + mutant.Off("addbehind") + " || c.view.Has(p.id) {\n commit = min(commit, p.durable)\n }\n"}}},
	{"addlate", "kill,slowlink,leader,viewserver", 1, []edit{ // a learner is proposed first and waited for later
		{"replication/core_propose.go", "p.required, c.joining = true, p.id", "p.required, c.joining = " + mutant.Off("addlate") + ", p.id"}}},
	{"localread", "pause,split", 1, []edit{ // reads are not confirmed
		{"replication/core_primary.go", "	if c.alone() {\n		return c.nonce, true", "	if c.alone() || " + mutant.On("localread") + " {\n		return c.nonce, true"}}},
	{"dropearly", "oneway,split,kill,leader", 1, []edit{ // a member is not waited for once its removal was asked for
		{"replication/core_health.go", "	c.propose(viewsvc.KindRemove,", "	for _, p := range c.peers {\n keep := " + mutant.Off("dropearly") + "\n for _, id := range stay {\n keep = keep || id == p.id\n }\n p.required = p.required && keep\n }\n	c.advance()\n	c.propose(viewsvc.KindRemove,"}}},
	{"applyearly", "kill,pause,power,split", 1, []edit{ // a backup takes what it has for committed
		{"replication/follow_log.go", "	r.core.Appended(frame.Last())\n", "	r.core.Appended(frame.Last())\n	if " + mutant.On("applyearly") + " {\n r.core.Follow(frame.Last())\n }\n"}}},
	{"nocut", "pause,split,kill", 1, []edit{ // a backup keeps what is not in the primary's log
		{"replication/follow_log.go", "	if to >= m.End {\n", "	if to >= m.End || " + mutant.On("nocut") + " {\n"}}},
	{"copyunfinished", "wipe,kill,slowdisk", 1, []edit{ // a learner is added before its image is whole
		{"replication/core_primary.go", "copied: !needsCopy,", "copied: !needsCopy || " + mutant.On("copyunfinished") + ","}}},
	{"copynothing", "wipe,kill", 1, []edit{ // a region copy leaves out what changed
		{"replication/ship.go", "	c := &regionCopy{base: base, changes: changes}\n", "	if " + mutant.On("copynothing") + " {\n base, changes = m.Committed, nil\n }\n	c := &regionCopy{base: base, changes: changes}\n"}}},
	{"copybase", "wipe,kill,power,reset", 1, []edit{ // a copy that is taken up again forgets where the image was
		{"replication/follow_log.go", "r.hard.CopyBase = c.Base\n", "r.hard.CopyBase = c.Base\n		if " + mutant.On("copybase") + " {\n r.hard.CopyBase = c.To\n }\n"}}},
	{"cachedlease", "isolate,oneway", 1, []edit{ // a lease that ran once runs for ever
		{"replication/core_primary.go", "at < c.leased() {", "(at < c.leased() || " + mutant.On("cachedlease") + " && c.leased() > 0) {"}}},
	{"forgetview", "power,blackout,split", 1, []edit{ // a view is not on disk before it is acted in
		{"replication/effects.go", "				err = r.saveHard()\n			}\n			if err != nil {\n				r.poison(a, err)", "				if " + mutant.Off("forgetview") + " {\n err = r.saveHard()\n }\n			}\n			if err != nil {\n				r.poison(a, err)"}}},
	{"nonumbers", "kill,pause,split,reset", 1, []edit{ // a request that is sent again is carried out again
		{"replication/replay.go", "	if !s.numbered(q) || slot >= len(s.space.slots) {", "	if !s.numbered(q) || slot >= len(s.space.slots) || " + mutant.On("nonumbers") + " {"}}},
	{"nofence", "slowdisk,pause", 1, []edit{ // an older attachment of a session goes on
		{"replication/session.go", "	if old != nil {\n		old.fenceLocked()", "	if old != nil && " + mutant.Off("nofence") + " {\n		old.fenceLocked()"},
		{"replication/session.go", "	if old != nil {\n		old.client.Abort(", "	if old != nil && " + mutant.Off("nofence") + " {\n		old.client.Abort("}}},
	{"oldnumbers", "gateway,kill", 1, []edit{ // a session that comes back under its name numbers its requests from the start
		{"tools/sim/gateway.go", "			s.owed, k.unresolved = k.unresolved, nil\n", "			s.owed, k.unresolved = k.unresolved, nil\n			if " + mutant.On("oldnumbers") + " {\n s.numbers = s.name\n }\n"}}},
	{"minanswer", "kill,power", 1, []edit{ // writes are answered with fewer than min_copies members
		{"replication/pending.go", "popCommitted(a *after, l wal.LSN) {\n	if r.thin() {", "popCommitted(a *after, l wal.LSN) {\n	if r.thin() && " + mutant.Off("minanswer") + " {"}}},
	{"heldcuts", "blackout,power", 1, []edit{ // a primary that may lack something begins its tenure, and has others cut
		{"replication/core.go", "		if c.suspect {\n			// Nothing", "		if " + mutant.Off("heldcuts") + " && c.suspect {\n			// Nothing"}}},
	{"unfinished", "force,kill,blackout,wipe", 1, []edit{ // an unfinished copy is forced, and serves
		{"viewsvc/operator.go", "	case rep.Copying &&", "	case " + mutant.Off("unfinished") + " && rep.Copying &&"},
		{"replication/order.go", "	if r.store.Copying() {\n		r.poison(a, errHalfCopy)", "	if r.store.Copying() && " + mutant.Off("unfinished") + " {\n		r.poison(a, errHalfCopy)"}}},
	{"nograntwait", "strand,leases", 1, []edit{ // a new primary opens though its promise to another still runs
		{"replication/core_primary.go", "|| c.promised() {", "|| c.promised() && " + mutant.Off("nograntwait") + " {"}}},
	{"forgetgrant", "strand,slowlink,leases", 1, []edit{ // a restarted replica takes itself to have promised nothing
		{"replication/core.go", "		c.given.until = s.Now.add(grantMax)\n", "		if " + mutant.Off("forgetgrant") + " {\n c.given.until = s.Now.add(grantMax)\n }\n"}}},
	{"leaseofone", "strand,leases,three", 1, []edit{ // one peer's grant is good for all
		{"replication/core_lease.go", "		p.lease = max(p.lease, until)\n", "		p.lease = max(p.lease, until)\n		for _, q := range c.peers {\n if " + mutant.On("leaseofone") + " {\n q.lease = max(q.lease, until)\n }\n }\n"}}},
	{"leasefromack", "strand,slowlink,leases", 1, []edit{ // a lease counts from when the grant arrived
		{"replication/core_primary.go", "	c.granted(p, a.Lease)\n", "	if " + mutant.On("leasefromack") + " && a.Lease != 0 {\n a.Lease += c.now - c.lease.asked()\n c.lease.latest = max(c.lease.latest, a.Lease)\n }\n	c.granted(p, a.Lease)\n"}}},
	{"longlease", "strand,leases", 1, []edit{ // a grant is relied on for as long as it was given, by whatever clock
		{"replication/core_lease.go", "{ return g * 8 / 10 }", "{\n if " + mutant.On("longlease") + " {\n return g\n }\n return g * 8 / 10 }"}}},
	{"fullearly", "full,isolate,oneway,strand", 1, []edit{ // a full primary refuses writes that another may have room for
		{"replication/full.go", "r.full >= fullTicks && r.core.alone()", "r.full >= fullTicks && (r.core.alone() || " + mutant.On("fullearly") + ")"}}},
	{"besideowner", "leader,kill,claims", 1, []edit{ // a session comes back beside an owner that is about to hold the volume
		{"replication/claim.go", "!claim.Held && r.named[claim.Owner] == nil", "!claim.Held && (r.named[claim.Owner] == nil || " + mutant.On("besideowner") + ")"}}},
	{"crowded", "gateway,leader,claims", 1, []edit{ // somebody is let in for himself while others are attached
		{"replication/claim.go", "case id.Exclusive && !claim.Held:", "case id.Exclusive && !claim.Held && " + mutant.Off("crowded") + ":"}}},
	{"promotebelow", "putback,kill", 1, []edit{ // a member that forgot what it acknowledged is promoted
		{"viewsvc/floor.go", "	return ok && v.View.Has(r) &&", "	return " + mutant.Off("promotebelow") + " && ok && v.View.Has(r) &&"}}},
	{"olderas", "gateway,pause,isolate,claims", 1, []edit{ // a session of before a claim comes back
		{"replication/claim.go", "	case !alive:\n", "	case !alive && " + mutant.Off("olderas") + ":\n"}}},
}
