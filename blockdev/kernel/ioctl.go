package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of the ioctl interface; part of the kernel's interface, never renumber.
const (
	ioctlSetSock       = 0xab00
	ioctlSetBlockSize  = 0xab01
	ioctlDoIt          = 0xab03
	ioctlClearSock     = 0xab04
	ioctlClearQueue    = 0xab05
	ioctlSetSizeBlocks = 0xab07
	ioctlDisconnect    = 0xab08
	ioctlSetFlags      = 0xab0a
)

// Ioctl is the driver over ioctl: for kernels before 4.12, and for containers, since generic netlink reaches the
// driver from the machine's own network namespace only. A device lasts as long as its socket, thus as the process.
type Ioctl struct {
	// mu guards everything below.
	mu   sync.Mutex
	open map[int]opened
	made map[int]bool   // devices that were ever connected
	wg   sync.WaitGroup // one for each open device: a thread of this process runs it
}

// opened is a device that is attached by this process.
type opened struct {
	*os.File
	blockSize uint32
}

// OpenIoctl finds the driver. The error wraps ErrNoDriver if there is none.
func OpenIoctl() (*Ioctl, error) {
	if !DeviceAt(0).Exists() {
		return nil, fmt.Errorf("kernel: there is no %s: %w", DeviceAt(0).Path(), ErrNoDriver)
	}
	return &Ioctl{open: make(map[int]opened), made: make(map[int]bool)}, nil
}

// Open finds the driver, over netlink if possible.
func Open() (Driver, error) {
	d, err := OpenNetlink()
	if err == nil {
		return d, nil
	}
	if errors.Is(err, ErrNoDriver) {
		if old, e := OpenIoctl(); e == nil {
			return old, nil
		}
	}
	return nil, err
}

// Close detaches all devices.
func (d *Ioctl) Close() error {
	d.mu.Lock()
	var errs []error
	for _, f := range d.open {
		errs = append(errs, ioctl(f.File, ioctlDisconnect, 0))
	}
	d.mu.Unlock()
	d.wg.Wait()
	return errors.Join(errs...)
}

// Connect implements Driver.
func (d *Ioctl) Connect(index int, c Config, sock *os.File) (int, error) {
	if err := c.Validate(); err != nil {
		return 0, err
	}
	candidates := []Device{DeviceAt(index)}
	if index == AnyIndex {
		var err error
		if candidates, err = Devices(); err != nil {
			return 0, err
		}
	}
	for _, dev := range candidates {
		if dev.Attached() {
			continue
		}
		err := d.connect(dev, c, sock)
		if errors.Is(err, unix.EBUSY) {
			continue // taken meanwhile
		}
		if err != nil {
			return 0, fmt.Errorf("kernel: connect %s: %w", dev.Name(), err)
		}
		return dev.Index, nil
	}
	return 0, fmt.Errorf("kernel: connect: %w", ErrBusy)
}

func (d *Ioctl) connect(dev Device, c Config, sock *os.File) error {
	f, err := os.OpenFile(dev.Path(), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := setUp(f, c, sock); err != nil {
		f.Close()
		return err
	}
	d.mu.Lock()
	d.open[dev.Index], d.made[dev.Index] = opened{f, c.BlockSize}, true
	d.mu.Unlock()
	ended := make(chan error, 1)
	d.wg.Go(func() { // ends with the device: DO_IT returns when the socket has ended
		runtime.LockOSThread() // DO_IT is for the process, but its thread is not to be borrowed meanwhile
		defer runtime.UnlockOSThread()
		ended <- ioctl(f, ioctlDoIt, 0)
		_ = ioctl(f, ioctlClearQueue, 0)
		_ = ioctl(f, ioctlClearSock, 0)
		d.mu.Lock()
		delete(d.open, dev.Index)
		d.mu.Unlock()
		f.Close()
	})
	return awaitStart(dev, c.Size, ended)
}

// awaitStart waits until DO_IT has made the device, whose size comes last: its call does not tell, since it lasts as long
// as the device.
func awaitStart(dev Device, size uint64, ended <-chan error) error {
	deadline := time.After(callTimeout)
	for !dev.Attached() || dev.Size() != size {
		select {
		case err := <-ended:
			return fmt.Errorf("the device has ended at once: %w", err)
		case <-deadline:
			return fmt.Errorf("the device is not there after %v", callTimeout)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// setUp tells the driver all before DO_IT.
func setUp(f *os.File, c Config, sock *os.File) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = ioctl(f, ioctlSetSock, fd) }); err != nil {
		return err
	}
	if set != nil {
		return set
	}
	for _, step := range []struct {
		request uint
		value   uint64
	}{
		{ioctlSetBlockSize, uint64(c.BlockSize)},
		{ioctlSetSizeBlocks, c.Size / uint64(c.BlockSize)},
		// Without the flags the kernel would never send a flush, and a file system's barriers would mean nothing.
		{ioctlSetFlags, uint64(c.Flags & kernelFlags)},
	} {
		if err := ioctl(f, step.request, uintptr(step.value)); err != nil {
			return errors.Join(err, ioctl(f, ioctlClearSock, 0))
		}
	}
	return nil
}

// Reconfigure implements Driver: it cannot.
func (d *Ioctl) Reconfigure(index int, _ string, _ uint64, _ *os.File) error {
	d.mu.Lock()
	made := d.made[index]
	d.mu.Unlock()
	if made {
		return fmt.Errorf("kernel: nbd%d: %w", index, ErrUnsupported)
	}
	return fmt.Errorf("kernel: nbd%d: %w", index, ErrNotConfigured)
}

// Resize implements Driver.
func (d *Ioctl) Resize(index int, _ string, size uint64) error {
	d.mu.Lock()
	f, ok := d.open[index]
	d.mu.Unlock()
	err := error(ErrNotConfigured)
	if ok {
		err = ioctl(f.File, ioctlSetSizeBlocks, uintptr(size/uint64(f.blockSize)))
	}
	if err != nil {
		return fmt.Errorf("kernel: resize nbd%d: %w", index, err)
	}
	return nil
}

// Disconnect implements Driver.
func (d *Ioctl) Disconnect(index int) error {
	d.mu.Lock()
	f := d.open[index].File
	d.mu.Unlock()
	if f == nil { // of another process
		var err error
		if f, err = os.OpenFile(DeviceAt(index).Path(), os.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("kernel: disconnect: %w", err)
		}
		defer f.Close()
	}
	if err := ioctl(f, ioctlDisconnect, 0); err != nil {
		return fmt.Errorf("kernel: disconnect nbd%d: %w", index, err)
	}
	return nil
}

// ioctl does one request. It does not use f.Fd, which would make the file blocking for the runtime.
func ioctl(f *os.File, request uint, arg uintptr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), arg)
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// Interface checks.
var (
	_ Driver = (*Netlink)(nil)
	_ Driver = (*Ioctl)(nil)
)
