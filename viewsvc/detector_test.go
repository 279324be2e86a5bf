package viewsvc

import (
	"errors"
	"strings"
	"testing"
)

func TestBrokenConnectionAloneKillsNobody(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	r.settle()
	probes := 0
	for ps := r.takeProbes(); len(ps) > 0; ps = r.takeProbes() {
		for _, p := range ps {
			probes++
			r.m.Probed(p, ProbeConnected)
		}
		r.settle()
	}
	if probes != len(probeDelays) {
		t.Errorf("%d probes", probes)
	}
	r.want(2, "n1", "n2")
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	r.settle()
	for _, p := range r.takeProbes() {
		r.m.Probed(p, ProbeFailed)
	}
	r.settle()
	r.want(2, "n1", "n2")
}

func TestRefusalIsVoidAfterASignOfLife(t *testing.T) {
	r := pair(t)
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	r.settle()
	probes := r.takeProbes()
	r.ticks(1) // it pings over another connection
	for _, p := range probes {
		r.m.Probed(p, ProbeRefused)
	}
	r.settle()
	r.want(2, "n1", "n2")
}

func TestPeersReportOfRefusalIsLookedInto(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.nodes["n2"].Replicas[0].Dead = ids(r.view().Primary)
	r.ticks(1)
	probes := r.takeProbes()
	if len(probes) != 1 || probes[0].Node != "n1" || probes[0].Delay <= 100_000_000 {
		t.Fatalf("probes %+v: want one of n1, after its next ping is due", probes)
	}
	r.m.Probed(probes[0], ProbeRefused)
	r.settle()
	r.want(3, "n2")
}

func TestGoodbyeIsBelievedAndOutlivesLatePings(t *testing.T) {
	r := pair(t)
	late := *r.nodes["n1"]
	bye := late
	bye.Bye = true
	if err := r.m.Ping(bye); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want(3, "n2")
	if err := r.m.Ping(late); err != nil {
		t.Fatal(err)
	}
	if r.m.life("n1") != lifeDead {
		t.Error("a ping that was sent before the goodbye revived the node")
	}
}

func TestNewLeaderGivesAFullGracePeriod(t *testing.T) {
	r := pair(t)
	r.down["n1"], r.down["n2"] = true, true
	r.ticks(testOptions.TDead / 2)
	delete(r.down, "n2")
	r.lead()
	for _, p := range r.m.volume(vol).status.Peers {
		if !p.Alive {
			t.Errorf("a new leader calls %s dead: its primary would remove it", p.Node)
		}
	}
	r.ticks(testOptions.TDead - 1)
	r.want(2, "n1", "n2")
	r.ticks(1)
	r.want(3, "n2")
}

func TestPausedLeaderGivesAFullGracePeriod(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.ticks(testOptions.TDead - 1)
	r.m.Tick(true)
	r.settle()
	r.ticks(testOptions.TDead - 1)
	r.want(2, "n1", "n2")
	r.ticks(1)
	r.want(3, "n2")
}

func TestPingWithoutARecentEchoIsNoSignOfLife(t *testing.T) {
	r := pair(t)
	deaf := *r.nodes["n1"] // it hears nothing: its echo never changes
	r.down["n1"] = true
	for range recentReplies {
		if _, err := r.m.Reply(deaf); err != nil {
			t.Fatal(err)
		}
	}
	for range testOptions.TDead {
		if err := r.m.Ping(deaf); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.ticks(1)
	}
	r.want(3, "n2")
}

func TestEchoOfAnotherLeaderIsNoSignOfLife(t *testing.T) {
	r := pair(t)
	former := r.m.last
	r.lead()
	if err := r.m.Ping(*r.nodes["n1"]); err != nil {
		t.Fatal(err)
	}
	if reply, err := r.m.Reply(*r.nodes["n2"]); err == nil && (reply.Seq <= former || reply.News <= former) {
		t.Errorf("a new leader uses old numbers: %+v after %d", reply, former)
	}
	if r.m.node("n1").news <= former {
		t.Errorf("news %d after %d", r.m.node("n1").news, former)
	}
	if r.m.life("n1") != lifeUnknown || r.m.Held(*r.nodes["n1"]) {
		t.Error("a new leader believes an old echo, or holds the ping that asks for a new one")
	}
}

func TestDuplicateNodeIsRefused(t *testing.T) {
	r := newRig(t, "n1")
	other := PingRequest{Node: "n1", Incarnation: "other", Addr: "elsewhere:1"}
	if err := r.m.Ping(other); !errors.Is(err, ErrDuplicateNode) || !strings.Contains(err.Error(), "n1:1") {
		t.Errorf("a second n1: %v", err)
	}
	if err := r.ping("n1"); err != nil {
		t.Errorf("the first n1: %v", err)
	}
	r.down["n1"] = true
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	if err := r.m.Ping(other); !errors.Is(err, ErrTryAgain) {
		t.Errorf("while the first is looked into: %v", err)
	}
	r.die("n1")
	if err := r.m.Ping(other); err != nil {
		t.Errorf("n1 that moved: %v", err)
	}
	if err := r.m.Ping(*r.nodes["n1"]); !errors.Is(err, ErrDuplicateNode) {
		t.Errorf("a ping of the former process: %v", err)
	}
}

func TestForeignClusterIsRefused(t *testing.T) {
	r := newRig(t, "n1")
	err := r.m.Ping(PingRequest{Cluster: "d", Node: "n2", Incarnation: "x", Addr: "n2:1"})
	if !errors.Is(err, ErrForeignCluster) || r.m.nodes["n2"] != nil {
		t.Errorf("%v, %+v", err, r.m.nodes["n2"])
	}
	if _, err := r.m.Vet(Proposal{Cluster: "d", Kind: KindAdd}); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("proposal: %v", err)
	}
}

func TestReportOfAnotherVolumeIsNotBelieved(t *testing.T) {
	r := pair(t)
	r.nodes["n2"].Replicas[0].Volume = "other"
	r.ticks(1)
	r.die("n1")
	r.ticks(5)
	r.want(2, "n1", "n2")
}

func TestPingIsHeldOnlyWithoutNews(t *testing.T) {
	r := pair(t)
	r.ticks(2)
	n := *r.nodes["n1"]
	if !r.m.Held(n) {
		t.Fatal("a ping without news is answered at once")
	}
	r.die("n2")
	if r.m.Held(n) {
		t.Error("the primary is not told that its backup died")
	}
}
