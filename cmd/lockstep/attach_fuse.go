package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"lockstep/replication/gateway"
)

// fusePatience is how long nbdfuse may take until its file is there.
const fusePatience = 20 * time.Second

// fuseRun is an attachment without the kernel's nbd driver: the gateway listens on a unix socket, nbdfuse makes a file
// of the export, losetup a block device of the file. It hides failovers as the other kind does, but nothing is kept
// when this process is killed: what is in flight fails then.
type fuseRun struct {
	o       attachOptions
	a       *attachment
	log     zerolog.Logger
	lock    *os.File // the lock ends when it is closed, and a file that nobody knows any more is
	backend *volumeBackend
	spawner *spawner
	nbdfuse *exec.Cmd
	ended   chan error // nbdfuse
}

// startFuse attaches a volume as a loop device.
func startFuse(o attachOptions, log zerolog.Logger, tell func(string)) (_ running, err error) {
	for _, tool := range []string{"nbdfuse", "losetup", "fusermount3"} {
		if _, err := exec.LookPath(tool); err != nil {
			return running{}, withHint(fmt.Errorf("--fuse needs %s", tool), "install nbdfuse, util-linux and fuse3")
		}
	}
	if os.Geteuid() != 0 {
		return running{}, withHint(errors.New("--fuse needs root, which alone makes loop devices"), "run as root, or use nbdfuse itself on what a gateway exports")
	}
	a, lock, err := o.claimed()
	if err != nil {
		return running{}, err
	}
	r := &fuseRun{o: o, a: a, log: log, lock: lock, spawner: newSpawner(), ended: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.takeDown(), o.dir.forget(context.Background(), a))
			lock.Close()
		}
	}()
	if dev, waits := a.nbd(); waits {
		err := withHint(fmt.Errorf("volume %s waits at %s", a.Volume, dev.Path()), "attach it there, or `lockstep detach %s` first", a.Volume)
		lock.Close()
		return running{}, err
	}
	if err := tearFuse(a); err != nil { // what a killed agent left behind
		return running{}, err
	}
	if err := r.setUp(); err != nil {
		return running{}, err
	}
	if err := makeLink(a.Volume, a.Device); err != nil {
		log.Warn().Err(err).Msg("there is no link to the device")
	}
	tell(a.Device)
	failed := make(chan error, 1)
	go func() { // ends with nbdfuse
		err := r.watch()
		r.ended <- err
		if err == nil {
			err = errors.New("it was unmounted")
		}
		failed <- fmt.Errorf("nbdfuse has ended: %w", err)
	}()
	return running{close: r.close, failed: failed}, nil
}

// watch waits for nbdfuse's end.
func (r *fuseRun) watch() error {
	for {
		select {
		case err := <-r.ended:
			return err
		case <-r.backend.Grown():
			r.log.Warn().Msg("the volume has grown, which nbdfuse cannot be told: unmount, detach and attach again to see it")
		}
	}
}

// setUp starts the parts, and notes them as they come.
func (r *fuseRun) setUp() (err error) {
	a := r.a
	socket := r.o.dir.file(a.Volume, ".sock")
	if _, err := checkUnix("unix:" + socket); err != nil {
		return withHint(err, "choose another directory with --state-dir")
	}
	if a.Fuse, err = filepath.Abs(r.o.fuse); err != nil {
		return err
	}
	if err := os.MkdirAll(a.Fuse, 0o700); err != nil {
		return err
	}
	a.Boot, a.Era = bootID(), 0
	if r.backend, err = r.o.open(context.Background(), a, gateway.Options{Listen: "unix:" + socket}, r.log); err != nil {
		return err
	}
	if err := a.ownedBySomebody(context.Background()); err != nil && !r.o.takeOver {
		return err // nbdfuse would not say so
	}
	a.Size = r.backend.export.Info().Size
	file := filepath.Join(a.Fuse, a.Volume)
	args := []string{file, "nbd+unix:///" + a.Volume + "?socket=" + socket}
	if a.ReadOnly {
		args = append([]string{"--readonly"}, args...)
	}
	r.nbdfuse = exec.Command("nbdfuse", args...)
	r.nbdfuse.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := r.spawner.start(r.nbdfuse); err != nil {
		r.nbdfuse = nil
		return err
	}
	go func() { r.ended <- r.nbdfuse.Wait() }() // ends with nbdfuse
	if err := r.await(file); err != nil {
		return err
	}
	args = []string{"--find", "--show", "--sector-size", strconv.FormatUint(uint64(r.o.blockSize), 10)}
	if a.ReadOnly {
		args = append(args, "--read-only")
	}
	out, err := output("losetup", append(args, file)...)
	if err != nil {
		return err
	}
	a.Device = strings.TrimSpace(out)
	return r.o.dir.save(a)
}

// await waits until nbdfuse shows its file.
func (r *fuseRun) await(file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), fusePatience)
	defer cancel()
	return poll(ctx, func() (bool, error) {
		select {
		case err := <-r.ended:
			r.ended <- err
			return false, fmt.Errorf("nbdfuse did not start: %w", err)
		default:
		}
		_, err := os.Stat(file)
		return err == nil, nil
	})
}

// close takes the device away as soon as nobody uses it.
func (r *fuseRun) close(ctx context.Context) error {
	err := poll(ctx, func() (bool, error) {
		err := unused(r.a.Device, r.a.PID)
		if errors.Is(err, errInUse) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return withHint(fmt.Errorf("%s is in use: its requests fail now: %w", r.a.Device, err), "unmount before you stop an attachment of --fuse")
	}
	return errors.Join(r.takeDown(), r.o.dir.forget(ctx, r.a), r.lock.Close())
}

// takeDown is setUp backwards.
func (r *fuseRun) takeDown() error {
	err := tearFuse(r.a)
	if r.nbdfuse != nil {
		select {
		case <-r.ended: // it ends when it is unmounted
		case <-time.After(fusePatience):
			_ = r.nbdfuse.Process.Kill()
		}
	}
	r.spawner.Close()
	if r.backend != nil {
		r.backend.Close()
	}
	return err
}

// tearFuse takes away what the kernel has of an attachment of --fuse. It may be gone already.
func tearFuse(a *attachment) error {
	if a.Fuse == "" || a.Boot != bootID() {
		return nil
	}
	if a.Device != "" {
		if backing := firstLine("/sys/block/" + filepath.Base(a.Device) + "/loop/backing_file"); backing == filepath.Join(a.Fuse, a.Volume) {
			if _, err := output("losetup", "--detach", a.Device); err != nil {
				return err
			}
		}
		removeLink(a.Volume, a.Device)
	}
	// EINVAL: it is not mounted. Lazily: the loop device's last reference goes some moments after losetup.
	if err := syscall.Unmount(a.Fuse, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", a.Fuse, err)
	}
	a.Fuse, a.Device = "", ""
	return nil
}

// detachFuse detaches an attachment of --fuse.
func (d *detacher) detachFuse(ctx context.Context, a *attachment) error {
	if !d.force && a.Device != "" && a.Boot == bootID() {
		if err := d.unused(a); err != nil {
			return err
		}
	}
	if err := d.signalAgent(a); err != nil {
		return err
	}
	lock, err := d.awaitAgent(ctx, a)
	if err != nil {
		return err
	}
	err = tearFuse(a)
	lock.Close()
	if err != nil {
		return err
	}
	return d.cleanUp(ctx, a)
}

// output runs a program of the system; its error is what it said.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return "", fmt.Errorf("%s: %s", name, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(out), nil
}
