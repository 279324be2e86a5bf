package viewsvc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
)

// cluster is a view server with nodes and a volume of two members.
func startCluster(t *testing.T) (*Server, *Client, map[NodeID]*testNode, VolumeStatus) {
	t.Helper()
	s := startServer(t, ServerOptions{})
	c := newClient(t, s.Addr())
	nodes := map[NodeID]*testNode{"n1": startNode(t, "n1", nil, s.Addr()), "n2": startNode(t, "n2", nil, s.Addr())}
	createVolume(t, c, Volume{Name: "vol0", Size: 1 << 20})
	return s, c, nodes, waitView(t, c, "vol0", "two members", twoMembers)
}

func TestRestartedNodeReturnsWithItsDisk(t *testing.T) {
	s, c, nodes, before := startCluster(t)
	old := nodeOf(before, before.View.Primary)
	nodes[old].kill()
	waitView(t, c, "vol0", "a failover", func(v View) bool { return v.Num == before.View.Num+1 })
	startNode(t, old, nodes[old].takeDisk(), s.Addr())
	after := waitView(t, c, "vol0", "its return", twoMembers)
	if after.View.Backups[0] != before.View.Primary {
		t.Errorf("after %+v came %+v", before.View, after.View)
	}
}

func TestViewIsPushedToAHeldPing(t *testing.T) {
	_, c, nodes, before := startCluster(t)
	start := time.Now()
	v, err := c.Handover(t.Context(), "vol0", "")
	if err != nil {
		t.Fatal(err)
	}
	if v.Primary != before.View.Backups[0] || v.Tenure != v.Num || !v.Has(before.View.Primary) {
		t.Fatalf("%+v follows %+v", v, before.View)
	}
	for id, n := range nodes {
		eventually(t, string(id)+" hears of the view", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return !n.viewSeen[v.Num].IsZero()
		})
		t.Logf("order to %s's hearing of the view: %s", id, n.viewSeen[v.Num].Sub(start))
	}
	h, err := c.Views(t.Context(), "vol0")
	if err != nil || len(h) != int(v.Num) || h[len(h)-1].Kind != KindHandover || h[0].Kind != KindFirst || h[0].Time.IsZero() {
		t.Errorf("history %+v, error %v", h, err)
	}
	if last := h[len(h)-1]; len(last.Nodes) != 2 || last.Nodes[v.Primary] == "" {
		t.Errorf("nodes of the last view: %v", last.Nodes)
	}
}

func TestWatchReturnsWithNews(t *testing.T) {
	_, c, nodes, before := startCluster(t)
	got := make(chan VolumeStatus, 1)
	go func() {
		s := before
		for s.View.Num == before.View.Num { // peers' liveness is news, too
			var err error
			if s, err = c.Watch(context.Background(), "vol0", s.News); err != nil {
				t.Error(err)
				break
			}
		}
		got <- s
	}()
	nodes[nodeOf(before, before.View.Primary)].kill()
	select {
	case s := <-got:
		if s.View.Num != before.View.Num+1 || s.News == before.News {
			t.Errorf("status %+v", s)
		}
	case <-time.After(patience):
		t.Fatal("the watch sleeps through a failover")
	}
}

func TestForceIsRecordedAsDataLoss(t *testing.T) {
	_, c, _, before := startCluster(t)
	backup := nodeOf(before, before.View.Backups[0])
	v, err := c.Force(t.Context(), "vol0", backup, "the primary's machine burnt")
	if err != nil {
		t.Fatal(err)
	}
	if v.DataLossGen != 1 || v.Primary != before.View.Backups[0] || len(v.Backups) != 0 {
		t.Errorf("%+v", v)
	}
	if _, err := c.Force(t.Context(), "vol0", "n9", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a stranger: %v", err)
	}
}

// TestEventsTellWhatHappened, once each, in order, and at once to who waits.
func TestEventsTellWhatHappened(t *testing.T) {
	_, c, nodes, before := startCluster(t)
	past, err := c.Events(t.Context(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	has := func(list []RecentEvent, want func(RecentEvent) bool) bool { return slices.ContainsFunc(list, want) }
	isAdd := func(e RecentEvent) bool {
		return e.Kind == EventView && e.Change == KindAdd && e.Volume == "vol0" && e.Primary != "" && len(e.Backups) == 1
	}
	if !has(past, func(e RecentEvent) bool { return e.Kind == EventLeading }) || !has(past, isAdd) {
		t.Errorf("%+v", past)
	}
	last := past[len(past)-1].Seq
	old := nodeOf(before, before.View.Primary)
	nodes[old].kill()
	dead := func(e RecentEvent) bool { return e.Kind == EventNodeDead && e.Node == old }
	promoted := func(e RecentEvent) bool { return e.Kind == EventView && e.Change == KindPromote }
	var news []RecentEvent
	for start := time.Now(); (!has(news, dead) || !has(news, promoted)) && time.Since(start) < patience; {
		more, err := c.Events(t.Context(), last, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range more {
			if e.Seq <= last {
				t.Fatalf("event %d again, after %d", e.Seq, last)
			}
			last = e.Seq
			news = append(news, e)
		}
	}
	if !has(news, dead) || !has(news, promoted) {
		t.Errorf("%+v", news)
	}
}

func TestBlockedEventCallbackDoesNotHoldUpAFailover(t *testing.T) {
	release := make(chan struct{})
	s := startServer(t, ServerOptions{OnEvent: func(Event) { <-release }})
	t.Cleanup(func() { close(release) }) // before the server's Close, which waits for the callback
	c := newClient(t, s.Addr())
	nodes := map[NodeID]*testNode{"n1": startNode(t, "n1", nil, s.Addr()), "n2": startNode(t, "n2", nil, s.Addr())}
	createVolume(t, c, Volume{Name: "vol0", Size: 1 << 20})
	before := waitView(t, c, "vol0", "two members", twoMembers)
	nodes[nodeOf(before, before.View.Primary)].kill()
	waitView(t, c, "vol0", "a failover", func(v View) bool { return v.Num > before.View.Num })
}

func TestDeleteReachesEveryNode(t *testing.T) {
	_, c, nodes, _ := startCluster(t)
	if err := c.DeleteVolume(t.Context(), "vol0"); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteVolume(t.Context(), "vol0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("again: %v", err)
	}
	if _, err := c.Watch(t.Context(), "vol0", 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("watch: %v", err)
	}
	eventually(t, "the volume is gone", func() bool {
		s, err := c.Status(t.Context())
		return err == nil && len(s.Volumes) == 0
	})
	for id, n := range nodes {
		if d := n.takeDisk(); len(d) != 0 {
			t.Errorf("%s keeps %v", id, d)
		}
	}
}

func TestErrorsKeepTheirTypesOverTheWire(t *testing.T) {
	s, c, _, st := startCluster(t)
	ctx := t.Context()
	p := Proposal{Cluster: s.Cluster(), Volume: st.Volume.ID, Expect: 1, Tenure: 1, From: st.View.Primary, Primary: st.View.Primary, Kind: KindRemove}
	_, err := c.Propose(ctx, p)
	if conflict, ok := errors.AsType[*ConflictError](err); !ok || !conflict.Current.Equal(st.View) {
		t.Errorf("old view: %v", err)
	}
	p.Expect, p.Tenure = st.View.Num, 7
	_, err = c.Propose(ctx, p)
	if rule, ok := errors.AsType[*RuleError](err); !ok || rule.Rule != "V4" || strings.Count(err.Error(), "viewsvc") != 1 {
		t.Errorf("another tenure: %v", err)
	}
	p.Kind = KindForce
	if _, err = c.Propose(ctx, p); err == nil {
		t.Error("a node may force")
	}
	p.Cluster = "foreign"
	if _, err = c.Propose(ctx, p); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("foreign proposal: %v", err)
	}
	if _, err = c.Ping(ctx, PingRequest{Cluster: "foreign", Node: "n3", Incarnation: "x", Addr: "h:1"}); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("foreign ping: %v", err)
	}
	if _, err = c.Ping(ctx, PingRequest{Node: "n1", Incarnation: "x", Addr: "h:1"}); !errors.Is(err, ErrDuplicateNode) {
		t.Errorf("duplicate: %v", err)
	}
	if _, err = c.Ping(ctx, PingRequest{Node: "../n", Incarnation: "x", Addr: "h:1"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad ID: %v", err)
	}
	if _, err = c.CreateVolume(ctx, Volume{Name: "vol0", Size: 1 << 20}); !errors.Is(err, ErrExists) {
		t.Errorf("taken name: %v", err)
	}
	if _, err = c.CreateVolume(ctx, Volume{Name: "vol1", Size: 1<<20 + 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("odd size: %v", err)
	}
	if _, err = c.CreateVolume(ctx, Volume{ID: "../../n1", Name: "vol1", Size: 1 << 20}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an ID that leads out of a node's directory: %v", err)
	}
	if err = c.Resume(ctx, "vol0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("nothing held: %v", err)
	}
	again, err := c.CreateVolume(ctx, st.Volume) // the answer to the first was lost
	if err != nil || again != st.Volume {
		t.Errorf("the same volume again: %+v, %v", again, err)
	}
}

func TestEveryErrorSurvivesEncoding(t *testing.T) {
	for _, w := range wireErrors {
		status, body := encodeError(w.err)
		if err := decodeError(body); !errors.Is(err, w.err) || status != w.status {
			t.Errorf("%v becomes %v, status %d", w.err, err, status)
		}
		const words = "there is no volume \"vol7\""
		if _, body := encodeError(fmt.Errorf("%w: %s", w.err, words)); decodeError(body).Error() != words {
			t.Errorf("people read %q, want %q", decodeError(body), words)
		}
	}
	if _, body := encodeError(io.EOF); !errors.Is(decodeError(body), ErrInternal) {
		t.Errorf("an unknown error becomes %+v", body)
	}
	if err := decodeError(errorBody{Code: codeConflict}); !errors.Is(err, ErrInternal) {
		t.Errorf("a conflict without a view becomes %v", err)
	}
}

func TestGarbageOnThePortHarmsNobody(t *testing.T) {
	s, c, _, st := startCluster(t)
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var conns []net.Conn
	for _, b := range [][]byte{
		nil, {0}, []byte(raftGreeting[:3]), []byte(raftGreeting), append([]byte(raftGreeting), noise...), noise,
		[]byte("\xc5not raft at all"), []byte("GET / HTTP/9.9\r\n\r\n"), []byte("POST /v1/ping HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{"),
		[]byte("POST /v1/ping HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]"), []byte("\x16\x03\x01\x02\x00\x01"),
	} {
		conn, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if _, err := conn.Write(b); err != nil {
			t.Logf("%q: %v", b[:min(len(b), 20)], err)
		}
	}
	huge := bytes.Repeat([]byte("x"), maxRequestBytes+1)
	resp, err := http.Post("http://"+s.Addr()+"/v1/propose", "application/json", bytes.NewReader(huge))
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("a huge request: %s", resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	now, err := c.Watch(t.Context(), "vol0", 0)
	if err != nil || !now.View.Equal(st.View) {
		t.Errorf("view %+v, error %v", now.View, err)
	}
	for _, conn := range conns {
		conn.Close()
	}
}

func TestClientPassesOverServersThatCannotLead(t *testing.T) {
	s, _, _, st := startCluster(t)
	hint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusMisdirectedRequest, errorBody{Code: codeNotLeader, Message: "not I", Leader: s.Addr()})
	}))
	defer hint.Close()
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "hello", http.StatusOK)
	}))
	defer stranger.Close()
	gone := reserve(t, 1)[0]
	gone.Close()

	c := newClient(t, gone.Addr().String(), hint.Listener.Addr().String())
	got, err := c.Watch(t.Context(), "vol0", 0)
	if err != nil || !got.View.Equal(st.View) {
		t.Errorf("view %+v, error %v", got.View, err)
	}
	if c.leader != s.Addr() {
		t.Errorf("remembers %q", c.leader)
	}

	c = newClient(t, gone.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, ErrNoLeader) || errors.Is(err, ErrLeaderless) || !strings.Contains(err.Error(), gone.Addr().String()) {
		t.Errorf("nobody there: %v", err)
	}
	c = newClient(t, stranger.Listener.Addr().String())
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("a stranger's answer is believed")
	}
}

// One of three view servers alone is not nobody: whoever asks is told that the others are missing.
func TestClientTellsALeaderlessServerFromNone(t *testing.T) {
	lonely, gone := reserve(t, 1)[0], reserve(t, 2)
	for _, l := range append(gone, lonely) {
		l.Close()
	}
	s, err := StartServer(ServerOptions{ID: "v1", Dir: t.TempDir(), Listen: lonely.Addr().String(),
		Peers: map[string]string{"v2": gone[0].Addr().String(), "v3": gone[1].Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := newClient(t, gone[0].Addr().String(), s.Addr(), gone[1].Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, ErrNoLeader) || !errors.Is(err, ErrLeaderless) {
		t.Errorf("got %v", err)
	}
}

// An election is waited for, and told of; a service of which nobody answers is not.
func TestClientWaitsForAnElectionAndNotForNobody(t *testing.T) {
	var told atomic.Int64
	follower := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if told.Load() > 0 {
			writeJSON(w, http.StatusOK, ClusterStatus{Cluster: "elected"})
			return
		}
		writeJSON(w, http.StatusServiceUnavailable, errorBody{Code: codeNotLeader, Message: "not I"})
	}))
	defer follower.Close()
	gone := reserve(t, 1)[0]
	gone.Close()
	dial := func(servers ...string) *Client {
		c, err := NewClient(ClientOptions{Servers: servers, CallTimeout: time.Hour, SilentTimeout: time.Millisecond, OnElection: func() { told.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	st, err := dial(gone.Addr().String(), follower.Listener.Addr().String()).Status(t.Context())
	if err != nil || st.Cluster != "elected" || told.Load() != 1 {
		t.Errorf("%+v, %v; told %d times", st, err, told.Load())
	}
	if _, err := dial(gone.Addr().String()).Status(t.Context()); !errors.Is(err, ErrNoLeader) || errors.Is(err, ErrLeaderless) || told.Load() != 1 {
		t.Errorf("nobody there: %v; told %d times", err, told.Load())
	}
}

// A server that was given a proposal and did not answer may accept it later. That another one refuses it, after that,
// settles nothing; if the first one is known not to have taken it, it does.
func TestRefusalAfterALostAnswerSettlesNothing(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status, body := encodeError(ruleErrorf("V3", "nobody is added"))
		writeJSON(w, status, body)
	}))
	defer refuses.Close()
	swallows := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer swallows.Close()
	follows := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusMisdirectedRequest, errorBody{Code: codeNotLeader, Message: "not I"})
	}))
	defer follows.Close()
	gone := reserve(t, 1)[0]
	gone.Close()
	for name, c := range map[string]struct {
		first   string
		settles bool
	}{
		"it took the request":    {swallows.Listener.Addr().String(), false},
		"it does not lead":       {follows.Listener.Addr().String(), true},
		"it could not be dialed": {gone.Addr().String(), true},
	} {
		_, err := newClient(t, c.first, refuses.Listener.Addr().String()).Propose(t.Context(), Proposal{Kind: KindAdd})
		if _, refused := errors.AsType[*RuleError](err); refused != c.settles || err == nil {
			t.Errorf("%s: refusal of the second server settles: %v; %v", name, refused, err)
		}
	}
}

func TestClientLeavesAServerThatHangs(t *testing.T) {
	s := startServer(t, ServerOptions{})
	hung := reserve(t, 1)[0] // accepts, and never answers: a stopped process
	defer hung.Close()
	c := newClient(t, hung.Addr().String(), s.Addr())
	start := time.Now()
	req := PingRequest{Node: "n1", Incarnation: uuid.NewString(), Addr: "h:1"}
	if _, err := c.Ping(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < pingAnswerTimeout {
		t.Errorf("it was never asked (%s)", took)
	}
	start = time.Now()
	if _, err := c.Ping(t.Context(), req); err != nil || time.Since(start) >= pingAnswerTimeout {
		t.Errorf("the second ping took %s, error %v: the leader is not remembered", time.Since(start), err)
	}
}

func TestForeignDirectoriesAreRefused(t *testing.T) {
	open := func(opt ServerOptions) error {
		s, err := StartServer(opt)
		if err == nil {
			s.Close()
		}
		return err
	}
	mine := t.TempDir()
	opt := ServerOptions{ID: "v1", Dir: mine, Listen: "127.0.0.1:0"}
	if err := open(opt); err != nil {
		t.Fatal(err)
	}
	damage := func(name, content string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, tc := range []struct {
		name, id, dir, want string
		peers               map[string]string
	}{
		{"another server's", "v2", mine, "view server v1's", nil},
		{"another group's", "v1", mine, "check --peer", map[string]string{"v2": "h:1", "v3": "h:2"}},
		{"a home", "v1", damage("thesis.tex", "x"), "thesis.tex", nil},
		{"damaged", "v1", damage("meta.json", "{"), "damaged", nil},
		{"newer", "v1", damage("meta.json", `{"format":2,"id":"v1","servers":["v1"]}`), "format 2", nil},
		{"without its state", "v1", damage("meta.json", `{"format":1,"id":"v1","servers":["v1"],"begun":true}`), "restore", nil},
		{"two servers", "v1", t.TempDir(), "use 1, 3 or 5", map[string]string{"v2": "h:1"}},
	} {
		o := opt
		o.ID, o.Dir, o.Peers = tc.id, tc.dir, tc.peers
		if err := open(o); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	s := startServer(t, opt)
	if err := open(opt); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("in use: %v", err)
	}
	s.Close()
	if err := open(opt); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestRaftSnapshotIsTakenAndRestored(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, ServerOptions{Dir: dir})
	c := newClient(t, s.Addr())
	startNode(t, "n1", nil, s.Addr())
	createVolume(t, c, Volume{Name: "vol0", Size: 1 << 20, Copies: 1})
	before := waitView(t, c, "vol0", "a view", func(v View) bool { return v.Num == 1 })
	if err := s.cons.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	// Without the log, only the snapshot can bring the state back.
	s = startServer(t, ServerOptions{Dir: dir})
	_, rc, err := openLastSnapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	state, err := DecodeState(rc)
	if err != nil || !state.volumes[before.Volume.ID].View.Equal(before.View) {
		t.Errorf("the snapshot has %+v, error %v", state, err)
	}
	st, err := newClient(t, s.Addr()).Watch(t.Context(), "vol0", 0)
	if err != nil || !st.View.Equal(before.View) {
		t.Errorf("view %+v, error %v", st.View, err)
	}
}

func openLastSnapshot(dir string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	store, err := raft.NewFileSnapshotStore(dir, keptSnapshots, io.Discard)
	if err != nil {
		return nil, nil, err
	}
	list, err := store.List()
	if err != nil || len(list) == 0 {
		return nil, nil, errors.Join(err, errors.New("no snapshot"))
	}
	return store.Open(list[0].ID)
}
