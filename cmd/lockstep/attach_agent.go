package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"lockstep/blockdev/kernel"
	"lockstep/replication/gateway"
)

// linkDir has a link to the device of each attached volume, whatever its number.
const linkDir = "/dev/lockstep"

// agentRun is an attachment to the kernel's driver that is served.
type agentRun struct {
	o      attachOptions
	a      *attachment
	log    zerolog.Logger
	driver kernel.Driver
	tell   func(device string)
	stop   context.CancelFunc
	over   chan struct{} // closed when the agent has ended
}

// startAttach begins to attach to the kernel's driver.
func startAttach(o attachOptions, log zerolog.Logger, tell func(string)) (_ running, err error) {
	a, lock, err := o.claimed()
	if err != nil {
		return running{}, err
	}
	r := &agentRun{o: o, a: a, log: log, tell: tell, over: make(chan struct{})}
	defer func() {
		if err != nil {
			if r.driver != nil {
				r.driver.Close()
			}
			lock.Close()
		}
	}()
	if r.driver, err = openDriver(o.driver); err != nil {
		return running{}, err
	}
	options := kernel.AgentOptions{
		Driver: r.driver, Index: kernel.AnyIndex,
		Config: kernel.Config{BlockSize: o.blockSize, DeadTimeout: o.deadTimeout, Identifier: a.identifier()},
		Open: func(ctx context.Context) (kernel.Backend, error) {
			b, err := r.o.open(ctx, a, gateway.Options{}, log)
			if err != nil {
				return nil, err // not a nil *volumeBackend
			}
			return b, nil
		},
		Attached: r.attached,
		Resized:  r.resized,
		OnEvent:  logKernelEvents(log),
	}
	if err := r.place(&options); err != nil {
		return running{}, err
	}
	unwatch := func() {}
	if n, ok := r.driver.(*kernel.Netlink); ok {
		dead := make(chan int, 1)
		options.LinkDead = dead
		if unwatch, err = n.Watch(func(index int) {
			select {
			case dead <- index:
			default: // one hint is there already
			}
		}); err != nil {
			return running{}, err
		}
	}
	agent, err := kernel.NewAgent(options)
	if err != nil {
		return running{}, err
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	failed := make(chan error, 1)
	go func() { // ends by stop, or when the device is detached
		err := r.run(ctx, agent)
		unwatch()
		r.driver.Close()
		close(r.over)
		lock.Close()
		failed <- explainDriver(err)
	}()
	return running{close: r.close, failed: failed}, nil
}

// place says which device it is to be: the one where the volume waits, the one that was asked for, or any.
func (r *agentRun) place(options *kernel.AgentOptions) error {
	a, asked := r.a, r.o.device
	dev, waits := a.nbd()
	switch {
	case waits && asked != "" && asked != dev.Path():
		return withHint(fmt.Errorf("volume %s waits at %s", a.Volume, dev.Path()), "attach it there, or `lockstep detach %s` first", a.Volume)
	case waits:
		options.Index, options.Resume = dev.Index, true
		return nil
	}
	a.Device, a.Era = "", 0
	if asked != "" {
		dev, _ := kernel.ParseDevice(asked) // setArgs did, too
		options.Index = dev.Index
	}
	return nil
}

// run serves the device until it is detached, and then forgets the attachment; or until ctx ends, and the device waits.
func (r *agentRun) run(ctx context.Context, agent *kernel.Agent) error {
	err := agent.Run(ctx)
	if ctx.Err() != nil {
		return nil // close has said what becomes of the device
	}
	if _, waits := r.a.nbd(); err == nil || !waits {
		err = errors.Join(err, r.o.dir.forget(context.Background(), r.a))
	}
	return err
}

// openDriver finds the kernel's driver in the way that was asked for.
func openDriver(how string) (kernel.Driver, error) {
	var d kernel.Driver
	var err error
	switch how {
	case "netlink":
		d, err = kernel.OpenNetlink()
	case "ioctl":
		d, err = kernel.OpenIoctl()
	default:
		d, err = kernel.Open()
	}
	if err != nil {
		return nil, explainDriver(err)
	}
	return d, nil
}

// attached notes where the volume is, before the first request is served, and tells whoever waits.
func (r *agentRun) attached(index int, resumed bool) error {
	dev := kernel.DeviceAt(index)
	a := r.a
	a.Device, a.Size, a.Identified, a.Boot = dev.Path(), dev.Size(), dev.Identifier() == a.identifier(), bootID()
	r.o.takeOver = false // once: two machines must not take a disk from each other again and again
	if err := r.o.dir.save(a); err != nil {
		return fmt.Errorf("note the device: %w", err)
	}
	_ = dev.Announce() // without udev nobody listens
	if err := dev.SetReplay(); err != nil {
		r.log.Warn().Err(err).Msg("after the next start of the agent, requests wait for up to 30 s")
	}
	if err := makeLink(a.Volume, dev.Path()); err != nil {
		r.log.Warn().Err(err).Msg("there is no link to the device")
	}
	r.tell(dev.Path())
	return nil
}

// resized notes the size that the device has now.
func (r *agentRun) resized(index int, size uint64) {
	if r.a.Size = kernel.DeviceAt(index).Size(); r.a.Size != size {
		r.log.Warn().Msg("the volume has grown, which this kernel cannot be told (Linux 5.3 can): unmount, detach and attach again to see it")
	}
	if err := r.o.dir.save(r.a); err != nil {
		r.log.Warn().Err(err).Msg("the device's size is not noted")
	}
}

// forget is the end of an attachment.
func (d attachDir) forget(ctx context.Context, a *attachment) error {
	if a.Device != "" {
		removeLink(a.Volume, a.Device)
	}
	if err := a.release(ctx); err != nil {
		return withHint(fmt.Errorf("volume %s stays claimed by this machine: %w", a.Volume, err), "`lockstep detach %s` when a view server answers", a.Volume)
	}
	return d.remove(a.Volume)
}

// close detaches the device if nobody uses it, and else leaves it to the next agent.
func (r *agentRun) close(ctx context.Context) error {
	if dev, ok := r.a.nbd(); ok {
		if err := unused(dev.Path(), r.a.PID); err != nil {
			r.log.Warn().Err(err).Msg("the device waits: start `lockstep attach` again, or unmount it and `lockstep detach`")
		} else if err := r.driver.Disconnect(dev.Index); err == nil {
			select {
			case <-r.over:
				return nil
			case <-ctx.Done():
			}
		}
	}
	r.stop()
	<-r.over
	return nil
}

// makeLink points linkDir/VOLUME at a device.
func makeLink(volume, device string) error {
	if err := os.MkdirAll(linkDir, 0o755); err != nil {
		return err
	}
	target := filepath.Join("..", filepath.Base(device))
	link := filepath.Join(linkDir, volume)
	if now, err := os.Readlink(link); err == nil && now == target {
		return nil
	}
	next := link + ".new"
	_ = os.Remove(next) // of an agent that was killed here
	if err := os.Symlink(target, next); err != nil {
		return err
	}
	return os.Rename(next, link)
}

// removeLink takes the link away, if it still points there.
func removeLink(volume, device string) {
	link := filepath.Join(linkDir, volume)
	if now, err := os.Readlink(link); err == nil && now == filepath.Join("..", filepath.Base(device)) {
		_ = os.Remove(link)
	}
}

// explainDriver puts what an operator can do behind an error of the driver.
func explainDriver(err error) error {
	switch {
	case errors.Is(err, kernel.ErrNoDriver):
		return withHint(err, "`modprobe nbd`, or use `lockstep attach --fuse DIRECTORY`, which needs nbdfuse")
	case errors.Is(err, kernel.ErrBusy):
		return withHint(err, "leave the device out to get a free one, or load more (`modprobe nbd nbds_max=64`)")
	case errors.Is(err, os.ErrPermission):
		return withHint(err, "attaching takes root")
	}
	return err
}

// logKernelEvents logs what happens to a device.
func logKernelEvents(log zerolog.Logger) func(kernel.Event) {
	return func(e kernel.Event) {
		line := eventLine(log, e.Err)
		if e.Index != kernel.AnyIndex {
			line.Str("device", kernel.DeviceAt(e.Index).Path())
		}
		if e.Size > 0 {
			line.Uint64("size", e.Size)
		}
		if e.After > 0 {
			line.Dur("after_ms", e.After)
		}
		line.Msg(e.Kind.String())
	}
}
