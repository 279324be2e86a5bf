package mutant

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// held is a rule that one test holds: it fails when the rule is broken.
type held struct {
	name  string
	test  string // in the package of the first edit, unless it begins with another's path
	edits []Edit
}

// rules are, first, those that a simulated cluster and the random walks do not show to be missing, or take far too long
// for; then what testing or review found and neither finds again soon.
var rules = []held{
	{"notenure", "TestAckOfAnotherTenureDoesNotCount", []Edit{ // an ack given in another tenure counts
		{"replication/core_primary.go", "	if a.Tenure != c.view.Tenure {\n", "	if a.Tenure != c.view.Tenure && " + Off("notenure") + " {\n"}}},
	{"carried", "TestNothingIsCarriedIntoANewTenure", []Edit{ // a primary goes on with what it knew in an earlier tenure
		{"replication/core.go", "	c.peers, c.recruits, c.openAt, c.lease = nil, nil, 0, lease{}\n", "	c.recruits, c.openAt, c.lease = nil, 0, lease{}\n	if " + Off("carried") + " {\n		c.peers = nil\n	}\n"}}},
	{"commitearly", "TestNothingIsCommittedBeforeTheViewRecordHasItsPlace", []Edit{ // a new primary commits before its VIEW record has its place
		{"replication/core_primary.go", "c.state == StateOpening && c.openAt == 0 {", "c.state == StateOpening && c.openAt == 0 && " + Off("commitearly") + " {"}}},
	{"claimearly", "TestNobodyIsLetInBeforeOrdersOfTheTenure", []Edit{ // clients are let in before orders of the tenure have come
		{"replication/claim.go", "bool { return r.ordersView >=", "bool { return " + On("claimearly") + " || r.ordersView >="}}},
	{"oldgeneration", "TestOldGenerationDoesNotAttachToTheNextPrimary", []Edit{ // R3: an older generation of a session attaches
		{"replication/session.go", "		if s.mem.generation >= id.Generation {\n", "		if s.mem.generation >= id.Generation && " + Off("oldgeneration") + " {\n"}}},
	{"nosessions", "TestRepeatedWriteIsNotCarriedOutAgain", []Edit{ // R1: a copy of the image leaves out which requests were carried out
		{"replication/ship.go", "	q.pushEncoded(msg{Type: msgSessions,", "	if " + On("nosessions") + " {\n		sessions = s.r.store.Sessions()[:0]\n	}\n	q.pushEncoded(msg{Type: msgSessions,"}}},
	{"noghosts", "TestAbandonedWriteKeepsItsRangeUntilItIsFenced", []Edit{ // G5: what a client that is gone has sent holds up nobody
		{"replication/gateway/flight.go", "	if !e.sentBefore || e.span.lo == e.span.hi {", "	if !e.sentBefore || e.span.lo == e.span.hi || " + On("noghosts") + " {"}}},
	{"noeviction", "TestTakeOverEndsTheFormerClientForGood", []Edit{ // a session goes on that a claim has ended
		{"replication/gateway/exclusive.go", "!alive && s.evicted == nil {", "!alive && s.evicted == nil && " + Off("noeviction") + " {"},
		{"replication/claim.go", "Claim.Admits(s.id.Name, s.id.Era); !alive {", "Claim.Admits(s.id.Name, s.id.Era); !alive && " + Off("noeviction") + " {"}}},

	{"firsttohear", "TestBackupThatHeardOfTheNextViewFirstKeepsItsStream", []Edit{ // a backup leaves a primary that has yet to hear of a view
		{"replication/core.go", "c.view.Tenure <= num && num <= c.view.Num &&", "c.view.Tenure <= num && num <= c.view.Num && (num == c.view.Num || " + Off("firsttohear") + ") &&"}}},
	{"overtaken", "TestRegionsAreNotOvertakenByCommitPoints", []Edit{ // a learner hears of commit points ahead of the regions that were read before
		{"replication/reads.go", "			if s.copying {\n", "			if s.copying && " + Off("overtaken") + " {\n"}}},
	{"lostatonce", "TestBlockIsNotLostWhileAMemberMayHaveIt", []Edit{ // a block is lost when a member could not be asked
		{"replication/repair.go", "		if bad == members && (", "		if " + On("lostatonce") + " || bad == members && ("}}},
	{"onlymembers", "TestBlockIsRepairedFromAMemberThatHadToGo", []Edit{ // who has just left the view is not asked for a block
		{"replication/repair.go", "		if !v.Has(ask.To) {", "		if !v.Has(ask.To) && " + Off("onlymembers") + " {"}}},
	{"neverlost", "TestBadBlockOfALonePrimaryKeepsNobodyAway", []Edit{ // a block that nobody has keeps learners away
		{"replication/repair.go", "		case e == nil, errors.Is(e, errNoCopy):", "		case e == nil, errors.Is(e, errNoCopy) && " + Off("neverlost") + ":"}}},
	{"unsettled", "TestAnswerToAnEarlierTryDoesNotShrinkR", []Edit{ // a refusal does not settle what was asked before and had no answer
		{"replication/core_propose.go", "	if p != c.proposal {\n		return\n	}\n	c.settled()", "	if p != c.proposal || p.Try > 1 && " + On("unsettled") + " {\n		return\n	}\n	c.settled()"}}},
	{"anytry", "TestAnswerToAnEarlierTryDoesNotShrinkR", []Edit{ // a refusal of an earlier try settles
		{"replication/core_propose.go", "func (c *Core) ProposalRefused(p *viewsvc.Proposal) {\n", "func (c *Core) ProposalRefused(p *viewsvc.Proposal) {\n	if " + On("anytry") + " {\n		p = c.proposal\n	}\n"}}},
	{"tosuspect", "TestHandoverWaitsUntilTheSuccessorIsNoSuspect", []Edit{ // the office is handed to one who would be held
		{"replication/core_propose.go", "p.durable < c.written || p.suspect ||", "p.durable < c.written || p.suspect && " + Off("tosuspect") + " ||"}}},
	{"besideformer", "TestAttachmentWaitsForTheEndOfTheOneBefore", []Edit{ // a session attaches while its former connection's requests are in hand
		{"replication/session.go", "	for s.mem != nil && s.mem.attached > 1 &&", "	for " + Off("besideformer") + " && s.mem != nil && s.mem.attached > 1 &&"}}},
	{"pastend", "TestOnlyAPrimaryThatStillIsOneSaysWhereTheVolumeEnds", []Edit{ // a primary that may be none says that a request is past the end
		{"replication/session.go", "q.Err == blockdev.ErrOutOfRange {", "q.Err == blockdev.ErrOutOfRange && " + Off("pastend") + " {"}}},
	{"askedkeepsout", "replication/gateway/TestClaimOfADeadProcessKeepsNobodyFromComingBack", []Edit{ // a claim that nobody holds keeps out who was attached before
		{"replication/claim.go", "	return id.Era != 0 && !claim.Held &&", "	return " + Off("askedkeepsout") + " && id.Era != 0 && !claim.Held &&"}}},
	{"ownerlives", "TestOwnersSessionEndsWithItsClaim", []Edit{ // a session goes on beside others when its claim was given up
		{"viewsvc/claim.go", "		if cur.Held {\n			cur.Era++\n", "		if cur.Held && " + Off("ownerlives") + " {\n			cur.Era++\n"}}},
	{"deadforced", "TestACopyOnADeadNodeIsNotForced", []Edit{ // a copy on a dead node is forced to be primary
		{"viewsvc/operator.go", "	case m.life(node) == lifeDead:", "	case m.life(node) == lifeDead && " + Off("deadforced") + ":"}}},
	{"fromthestart", "TestRefusedBatchGoesOnWhereItWas", []Edit{ // a batch that the disk refused begins anew, with versions that were replaced
		{"blockdev/apply.go", "		if lsn <= b.done {", "		if lsn <= b.done && " + Off("fromthestart") + " {"}}},
}

// A test that hangs with a broken rule has noticed. With the rule in place it has more time than it ever takes.
const (
	maxBroken = 12 * time.Second
	maxIntact = 2 * time.Minute
)

func TestEachOfTheseRulesIsHeldByItsTest(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the tests of several packages")
	}
	var all []Mutant
	for _, r := range rules {
		all = append(all, Mutant{r.name, r.edits})
	}
	root, err := ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	binaries := map[string]string{} // by package
	for _, r := range rules {
		pkg, test := path.Split(r.test)
		if pkg = path.Clean(pkg); pkg == "." {
			pkg = path.Dir(r.edits[0].File)
		}
		if binaries[pkg] == "" {
			if binaries[pkg], err = Build(t.TempDir(), all, "test -c", "./"+pkg); err != nil {
				t.Fatal(err)
			}
		}
		binary, dir := binaries[pkg], filepath.Join(root, pkg)
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if out, failed := run(t, binary, dir, test, "", maxIntact); failed {
				t.Fatalf("%s fails with the rule in place:\n%s", test, out)
			}
			out, failed := run(t, binary, dir, test, r.name, maxBroken)
			switch {
			case strings.Contains(out, "no tests to run"):
				t.Errorf("there is no %s in %s", test, pkg)
			case !failed:
				t.Errorf("%s does not notice", test)
			}
		})
	}
}

// run runs a test with a mutant turned on.
func run(t *testing.T, binary, dir, test, name string, limit time.Duration) (out string, failed bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.run", "^"+test+"$", "-test.timeout", limit.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", Env, name))
	b, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(b), err != nil
}
