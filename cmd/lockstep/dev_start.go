package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lockstep/viewsvc"
)

const (
	// devStartPatience is how long the parts may take until the volume serves. A log that has to be recovered
	// takes a second per GiB or so.
	devStartPatience = 2 * time.Minute
	// devCopiesPatience is how long dev waits for all copies after the volume serves. A backup that was away for long
	// needs longer; one can write meanwhile.
	devCopiesPatience = 15 * time.Second
	// devSilence is how long dev waits before it says for what, and before it says so again, of something else.
	devSilence = 5 * time.Second
	// devProbePatience is how long the gateway may take to answer a client that dev plays.
	devProbePatience = 2 * time.Second
)

// start starts the children, creates the volume, and returns when a client can write.
func (c *devCluster) start(ctx context.Context, ports *devPorts, o devOptions) error {
	patience, cancel := context.WithTimeout(ctx, devStartPatience)
	defer cancel()
	waitingFor := "the view server"

	if _, err := c.launch(devServer, ports); err != nil {
		return err
	}
	err := c.await(patience, func() bool {
		_, err := c.status(patience)
		return err == nil
	})
	if err == nil {
		for _, n := range c.layout.Nodes {
			if _, err := c.launch(n.ID, ports); err != nil {
				return err
			}
		}
		if _, err := c.launch(devGateway, ports); err != nil {
			return err
		}
		waitingFor = "the nodes"
		err = c.await(patience, func() bool { return c.nodesAlive(patience) })
	}
	if err == nil {
		waitingFor = "volume " + o.volume
		err = c.awaitVolume(patience, o, &waitingFor)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return withHint(fmt.Errorf("dev: not ready after %s, waiting for %s", devStartPatience, waitingFor),
			"see %s", filepath.Join(c.dir.path, devLogDir))
	}
	return err
}

// await polls until look is content. It ends early when a child ends.
func (c *devCluster) await(ctx context.Context, look func() bool) error {
	return poll(ctx, func() (bool, error) {
		select {
		case err := <-c.failed:
			return false, err
		default:
			return look(), nil
		}
	})
}

// status asks the view server once, and not for long.
func (c *devCluster) status(ctx context.Context) (viewsvc.ClusterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.client.Status(ctx)
}

func (c *devCluster) nodesAlive(ctx context.Context) bool {
	for _, n := range c.layout.Nodes {
		if !c.nodeAlive(ctx, n.ID) {
			return false
		}
	}
	return true
}

// nodeAlive tells whether the view service sees the present process of a node.
func (c *devCluster) nodeAlive(ctx context.Context, name string) bool {
	c.mu.Lock()
	ch := c.children[name]
	c.mu.Unlock()
	cluster, err := c.status(ctx)
	if err != nil || ch == nil {
		return false
	}
	for _, n := range cluster.Nodes {
		if string(n.ID) == name {
			return n.Alive && n.PID == ch.pid
		}
	}
	return false
}

// alive tells whether a child does its work.
func (c *devCluster) alive(ctx context.Context, ch *child) bool {
	switch ch.name {
	case devServer:
		_, err := c.status(ctx)
		return err == nil
	case devGateway:
		return probeListens(ctx, c.layout.Listen) == nil
	}
	return c.nodeAlive(ctx, ch.name)
}

// awaitVolume creates the volume if it is missing, and returns when it serves, with all of its copies if they can be had
// soon.
func (c *devCluster) awaitVolume(ctx context.Context, o devOptions, waitingFor *string) error {
	if err := c.ensureVolume(ctx, o); err != nil {
		return err
	}
	toldHeld, serves := false, time.Time{}
	told, silent := "", time.Now()
	for {
		limit, cancel := context.WithTimeout(ctx, devStartPatience)
		held := false
		err := c.await(limit, func() bool {
			vs, err := findVolume(limit, c.client, o.volume)
			if err != nil {
				return false
			}
			v := judge(vs)
			held = vs.Held
			if held && !toldHeld {
				return true
			}
			*waitingFor = verdictLine(newVolumeReport(vs))
			if v.state == stateUnavailable {
				if *waitingFor != told && time.Since(silent) > devSilence {
					told, silent = *waitingFor, time.Now()
					fmt.Fprintf(c.say, "waiting: %s\n", told)
				}
				return false
			}
			if serves.IsZero() {
				serves = time.Now()
			}
			if v.state != stateSafe && time.Since(serves) < devCopiesPatience {
				return false
			}
			return probeExport(limit, c.layout.Listen, o.volume) == nil
		})
		cancel()
		if err != nil || !held {
			return err
		}
		// An operator's decision takes its time: the clock begins anew.
		toldHeld = true
		fmt.Fprintf(c.say, "%s is held: its machine went down, and with --sync flush what was not flushed may be lost; to go on: %s\n",
			o.volume, c.command("volume resume "+o.volume+" --view "+c.layout.View))
	}
}

// ensureVolume creates the volume, or checks that the one that is there is what was asked for.
func (c *devCluster) ensureVolume(ctx context.Context, o devOptions) error {
	vs, err := findVolume(ctx, c.client, o.volume)
	switch {
	case errors.Is(err, viewsvc.ErrNotFound):
		if _, err := c.client.CreateVolume(ctx, o.newVolume()); err != nil {
			return fmt.Errorf("dev: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("dev: %w", err)
	case o.given("size") && vs.Volume.Size != uint64(o.size):
		return withHint(fmt.Errorf("dev: %s has %s, not %s", o.volume, formatSize(vs.Volume.Size), formatSize(uint64(o.size))),
			"leave --size out, or choose another --volume or --dir")
	case o.given("sync") && vs.Volume.Sync != viewsvc.SyncMode(o.sync):
		return withHint(fmt.Errorf("dev: %s has --sync %s, not %s", o.volume, vs.Volume.Sync, o.sync.String()),
			"leave --sync out, or choose another --volume or --dir")
	}
	return nil
}

// hints says what can be tried now.
func (c *devCluster) hints(o devOptions) {
	uri := exportURI(c.layout.Listen, o.volume)
	say := func(what, line string) { fmt.Fprintf(c.say, "  %-24s %s\n", what, line) }
	fmt.Fprintln(c.say, "try, in another terminal:")
	say("write to it", fmt.Sprintf("fio --name=try --ioengine=nbd --uri='%s' --rw=randwrite --bs=4k --iodepth=32 --time_based --runtime=30", uri))
	if name, pid := c.primary(o.volume); pid != 0 {
		say("kill the primary, "+name, fmt.Sprintf("kill -9 %d", pid))
		say("start it again", c.command("dev restart "+name))
	}
	view := ""
	if !c.standard() && c.layout.View != devView {
		view = " --view " + c.layout.View
	}
	say("see how the volume is", c.command("status --watch"+view))
	say("see what happens", c.command("events --follow"+view))
	say("stop everything", "Ctrl-C here; `"+c.command("dev")+"` goes on with the same data")
}

// primary is the node that serves a volume, and its process.
func (c *devCluster) primary(volume string) (name string, pid int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	vs, err := findVolume(ctx, c.client, volume)
	if err != nil {
		return "", 0
	}
	name = nodeNames(vs.Peers)(vs.View.Primary)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.children[name]; ch != nil {
		pid = ch.pid
	}
	return name, pid
}

// command is a command line that does something to this cluster, as its user would type it.
func (c *devCluster) command(line string) string {
	program := os.Args[0]
	if strings.Contains(c.exe, "/go-build") {
		program = "go run ./cmd/lockstep" // the binary is gone when this process is
	}
	if strings.HasPrefix(line, "dev") {
		if !c.standard() {
			line += " --dir " + shellWord(c.dir.path)
		}
	}
	return shellWord(program) + " " + line
}

// shellWord is a path as a shell reads it.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// standard tells whether the directory is the one that commands in the working directory look for themselves.
func (c *devCluster) standard() bool {
	standard, err := filepath.Abs(devDefaultDir)
	return err == nil && standard == c.dir.path
}
