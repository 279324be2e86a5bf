package viewsvc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Raft's timing and limits. A single server has nobody to wait for and elects itself at once.
const (
	groupElection    = 500 * time.Millisecond
	groupLease       = 400 * time.Millisecond
	singleElection   = 50 * time.Millisecond
	commitTimeout    = 5 * time.Millisecond
	raftIOTimeout    = 2 * time.Second
	applyTimeout     = 2 * time.Second // to enter the log
	barrierTimeout   = 5 * time.Second
	openStoreTimeout = time.Second
	keptSnapshots    = 2
	snapshotEvery    = 1024 // log entries
	trailingLogs     = 256  // kept after a snapshot for followers that lag a little
)

// consensus is hashicorp/raft on a data directory.
type consensus struct {
	raft  *raft.Raft
	store *raftboltdb.BoltStore
	addrs map[raft.ServerID]string // of every view server, as configured now
}

// openConsensus opens Raft's state, or begins it in a new directory. All servers of a group begin with the same
// configuration, so that it does not matter which of them is first.
func openConsensus(opt ServerOptions, meta dirMeta, fsm raft.FSM, stream raft.StreamLayer, logs io.Writer) (*consensus, error) {
	c := &consensus{addrs: map[raft.ServerID]string{raft.ServerID(opt.ID): stream.Addr().String()}}
	for id, addr := range opt.Peers {
		c.addrs[raft.ServerID(id)] = addr
	}
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: logs, DisableTime: true})
	file := filepath.Join(opt.Dir, "raft.db")
	if err := checkDB(file); err != nil {
		return nil, err
	}
	store, err := raftboltdb.New(raftboltdb.Options{
		Path:        file,
		BoltOptions: &bbolt.Options{Timeout: openStoreTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		return nil, fmt.Errorf("viewsvc: open %s: %w", file, err)
	}
	c.store = store
	snaps, err := raft.NewFileSnapshotStoreWithLogger(opt.Dir, keptSnapshots, logger)
	if err != nil {
		store.Close()
		return nil, fmt.Errorf("viewsvc: open snapshots: %w", err)
	}
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: c, Logger: logger, Stream: stream, MaxPool: 2, Timeout: raftIOTimeout,
	})
	if err := c.start(opt, meta, fsm, snaps, transport, logger); err != nil {
		transport.Close()
		store.Close()
		return nil, err
	}
	return c, nil
}

func (c *consensus) start(opt ServerOptions, meta dirMeta, fsm raft.FSM, snaps raft.SnapshotStore, transport *raft.NetworkTransport, logger hclog.Logger) error {
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(opt.ID)
	config.Logger = logger
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = groupElection, groupElection, groupLease
	if len(c.addrs) == 1 {
		config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = singleElection, singleElection, singleElection
	}
	config.CommitTimeout = commitTimeout
	config.SnapshotThreshold, config.TrailingLogs = snapshotEvery, trailingLogs
	config.NoLegacyTelemetry = true

	exists, err := raft.HasExistingState(c.store, c.store, snaps)
	if err != nil {
		return fmt.Errorf("viewsvc: read Raft state: %w", err)
	}
	if !exists {
		if meta.Begun {
			return fmt.Errorf("viewsvc: the state in %s is gone: restore it from a copy; this server must not begin anew, it may have voted", opt.Dir)
		}
		if err := raft.BootstrapCluster(config, c.store, c.store, snaps, transport, c.configuration()); err != nil {
			return fmt.Errorf("viewsvc: begin Raft state: %w", err)
		}
	}
	if !meta.Begun {
		meta.Begun = true
		if err := writeMeta(opt.Dir, meta); err != nil {
			return err
		}
	}
	c.raft, err = raft.NewRaft(config, fsm, c.store, c.store, snaps, transport)
	if err != nil {
		return fmt.Errorf("viewsvc: start Raft: %w", err)
	}
	return nil
}

// configuration must be the same to the byte on every server that begins with it: it has IDs in place of the
// addresses, which one server may know by another name than the next. ServerAddr has the addresses.
func (c *consensus) configuration() raft.Configuration {
	var conf raft.Configuration
	for _, id := range slices.Sorted(maps.Keys(c.addrs)) {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
	}
	return conf
}

// ServerAddr has the addresses of the command line: a server may move to another one when all are restarted.
func (c *consensus) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	addr, ok := c.addrs[id]
	if !ok {
		return "", fmt.Errorf("viewsvc: no address is known of view server %s", id)
	}
	return raft.ServerAddress(addr), nil
}

// leader is the leading server's ID and address, both "" if none is known.
func (c *consensus) leader() (id, addr string) {
	_, lid := c.raft.LeaderWithID()
	return string(lid), c.addrs[lid]
}

// apply commits a command and waits for its outcome. After an error that is ErrNoLeader it is unknown whether
// the command was or will be committed.
func (c *consensus) apply(cmd Command) (Result, error) {
	b, err := json.Marshal(cmd)
	if err != nil {
		return Result{}, fmt.Errorf("%w: encode command: %w", ErrInternal, err)
	}
	f := c.raft.Apply(b, applyTimeout)
	if err := f.Error(); err != nil {
		return Result{}, raftError(err)
	}
	out, ok := f.Response().(outcome)
	if !ok {
		return Result{}, fmt.Errorf("%w: the log gave %T", ErrInternal, f.Response())
	}
	return out.result, out.err
}

// verify makes sure that this server still leads, so that what it answers is not out of date.
func (c *consensus) verify() error {
	if err := c.raft.VerifyLeader().Error(); err != nil {
		return raftError(err)
	}
	return nil
}

func raftError(err error) error { return fmt.Errorf("%w: %w", ErrNoLeader, err) }

// close ends Raft. A leader of a group passes leadership on first, so that nobody has to miss it before; when that
// fails, an election does it.
func (c *consensus) close() error {
	if len(c.addrs) > 1 && c.raft.State() == raft.Leader {
		_ = c.raft.LeadershipTransfer().Error()
	}
	err := c.raft.Shutdown().Error()
	return errors.Join(err, c.store.Close())
}

// outcome is what applying a log entry gives.
type outcome struct {
	result Result
	err    error
}

// fsm puts the Server's State under Raft.
type fsm struct{ s *Server }

// Apply is called by Raft for each committed entry, in order, on every server.
func (f fsm) Apply(entry *raft.Log) any {
	cmd, err := decodeCommand(entry.Data)
	if err != nil {
		return outcome{err: err}
	}
	result, err := f.s.applied(cmd)
	return outcome{result, err}
}

// decodeCommand reads a log entry. One that cannot be read is rejected, by every server alike.
func decodeCommand(b []byte) (Command, error) {
	var cmd Command
	if err := json.Unmarshal(b, &cmd); err != nil {
		return Command{}, fmt.Errorf("%w: decode command: %w", ErrInvalid, err)
	}
	return cmd, nil
}

func (f fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	b, err := f.s.state.Encode()
	return fsmSnapshot(b), err
}

func (f fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	state, err := DecodeState(r)
	if err != nil {
		return err
	}
	f.s.restored(state)
	return nil
}

type fsmSnapshot []byte

func (b fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := io.Copy(sink, bytes.NewReader(b)); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (fsmSnapshot) Release() {}
