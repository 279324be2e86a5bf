package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// Where on the disk of 512 MiB each client writes.
const (
	checkerBytes = 64 << 20 // from 0
	probeOffset  = 64 << 20
	probeBlocks  = 1024
	fioOffset    = "128M"
	fioSize      = "384M"
)

// load is the three clients.
type load struct {
	uri    string
	ledger *stamped.Ledger
	cancel context.CancelFunc // of checker and probe
	all    sync.WaitGroup
	fio    *exec.Cmd
	out    bytes.Buffer // fio's

	gate sync.RWMutex // held while all rest; each request of probe and checker passes it

	// mu guards everything below.
	mu    sync.Mutex
	stats stamped.Stats
	errs  []error
	acked int // by the probe
	last  time.Time
	gaps  []gap // between the probe's acknowledgements, since reset
}

// gap is the time between two acknowledgements.
type gap struct{ from, to time.Time }

func (g gap) length() time.Duration { return g.to.Sub(g.from) }

func startLoad(ctx context.Context, uri string) (*load, error) {
	l := &load{uri: uri}
	disk, err := stamped.DialNBD(ctx, uri)
	if err != nil {
		return nil, err
	}
	layout := stamped.LayoutFor(checkerBytes)
	if err := stamped.Clear(disk, layout); err != nil {
		disk.Close()
		return nil, err
	}
	l.ledger = stamped.NewLedger(layout)
	ctx, l.cancel = context.WithCancel(ctx)
	l.all.Go(func() { // until ctx ends
		stats, err := stamped.Run(ctx, l.ledger, stamped.Options{
			Dial:  func(ctx context.Context) (stamped.Disk, error) { return stamped.DialNBD(ctx, uri) },
			Conns: 1, Depth: 4, MaxCells: 16,
			Observe: func(stamped.Kind, time.Time, time.Duration) { l.pass() },
		})
		l.mu.Lock()
		l.stats = stats
		l.mu.Unlock()
		l.failed("checker", err)
	})
	l.all.Go(func() { // until ctx ends
		defer disk.Close()
		l.failed("probe", l.probe(ctx, disk))
	})
	l.fio = exec.Command("fio", "--name=load", "--thread", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=4k", "--iodepth=32",
		"--offset="+fioOffset, "--size="+fioSize, "--norandommap", "--time_based", "--runtime=24h", "--output-format=json")
	l.fio.Stdout = &l.out
	// It does not outlive this process, and Ctrl-C is for this process to act on.
	l.fio.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cluster.StartCommand(l.fio); err != nil {
		l.end()
		return nil, err
	}
	return l, nil
}

func (l *load) failed(who string, err error) {
	if err != nil {
		l.mu.Lock()
		l.errs = append(l.errs, fmt.Errorf("%s: %w", who, err))
		l.mu.Unlock()
	}
}

// probe writes block after block.
func (l *load) probe(ctx context.Context, disk *stamped.NBD) error {
	block := make([]byte, 4096)
	for i := uint64(0); ctx.Err() == nil; i++ {
		if err := disk.WriteAt(block, probeOffset+i%probeBlocks*4096, false); err != nil {
			return err
		}
		now := time.Now()
		l.mu.Lock()
		l.gaps = append(l.gaps, gap{l.last, now})
		l.acked, l.last = l.acked+1, now
		l.mu.Unlock()
		l.pass()
	}
	return nil
}

// pass waits while all rest.
func (l *load) pass() {
	l.gate.RLock()
	defer l.gate.RUnlock()
}

// reset begins to take down gaps anew, now.
func (l *load) reset() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gaps = nil
	return time.Now()
}

// since gives the gaps that were taken down since reset.
func (l *load) since() []gap {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.gaps)
}

// rest lets all clients rest while a node returns: recruiting yields to clients, and would take long.
func (l *load) rest(wait func() error) error {
	if err := l.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	l.gate.Lock()
	err := wait()
	l.gate.Unlock()
	return errors.Join(err, l.signal(syscall.SIGCONT))
}

// signal is for fio, whose job is a thread of it: as a process it would be a session of its own.
func (l *load) signal(s syscall.Signal) error { return syscall.Kill(-l.fio.Process.Pid, s) }

// goesOn waits for n more of the probe's writes.
func (l *load) goesOn(ctx context.Context, n int) error {
	l.mu.Lock()
	want := l.acked + n
	l.mu.Unlock()
	return cluster.Await(ctx, goOnLimit, "writes", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.errs) > 0 {
			return errors.Join(l.errs...)
		}
		if l.acked < want {
			return fmt.Errorf("%d are missing", want-l.acked)
		}
		return nil
	})
}

// end ends the clients, whatever they have to say.
func (l *load) end() {
	l.cancel()
	l.all.Wait()
	if l.fio.Process != nil {
		l.signal(syscall.SIGKILL)
		l.fio.Wait()
	}
}

// loadReport is what the clients say at the end.
type loadReport struct {
	FioWrites int64  `json:"fio_writes"`
	Checked   int64  `json:"requests_of_the_checker"`
	Probed    int    `json:"writes_of_the_probe"`
	Verdict   string `json:"verdict"`
}

// finish ends the clients and asks for their verdicts.
func (l *load) finish(ctx context.Context) (loadReport, error) {
	l.cancel()
	l.all.Wait()
	l.fio.Process.Signal(syscall.SIGINT)
	err := l.fio.Wait() // an interrupted fio may say so in its exit code: what it did is in its output
	var out struct {
		Jobs []struct {
			Error int `json:"error"`
			Write struct {
				TotalIO int64 `json:"total_ios"`
			} `json:"write"`
		} `json:"jobs"`
	}
	text := l.out.Bytes()
	if e := json.Unmarshal(text[max(0, bytes.IndexByte(text, '{')):], &out); e != nil || len(out.Jobs) != 1 {
		return loadReport{}, fmt.Errorf("fio's output: %w (%w): %s", e, err, text)
	}
	if out.Jobs[0].Error != 0 {
		return loadReport{}, fmt.Errorf("fio got error %d", out.Jobs[0].Error)
	}
	if len(l.errs) > 0 {
		return loadReport{}, errors.Join(l.errs...)
	}
	disk, err := stamped.DialNBD(ctx, l.uri)
	if err != nil {
		return loadReport{}, err
	}
	defer disk.Close()
	if err := stamped.Verify(disk, l.ledger); err != nil {
		return loadReport{}, err
	}
	return loadReport{
		FioWrites: out.Jobs[0].Write.TotalIO, Checked: l.stats.Done(), Probed: l.acked,
		Verdict: "no client got an error; no acknowledged write was lost, and none came back",
	}, nil
}
