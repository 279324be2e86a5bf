package guest

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"lockstep/tools/e2e/cluster"
)

// bootLimit is how long a guest may take to answer. It takes some four seconds on an idle machine.
const bootLimit = 90 * time.Second

// initScript is the guest's first process. It loads modules in their order, brings up the network that qemu expects, and
// runs the commands of the second serial line for ever.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
hostname guest
mkdir -p /proc /sys /dev /run /tmp /mnt /root /var/lib /etc
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for m in /modules/*; do insmod "$m" || echo "insmod $m failed"; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
exec </dev/ttyS1 >/dev/ttyS1
stty raw -echo
echo "@ 0 "
while read -r line; do
  echo "$line" | base64 -d >/tmp/script
  sh /tmp/script >/tmp/output 2>&1 </dev/null
  code=$?
  echo "@ $code $(base64 /tmp/output | tr -d '\n')"
done
echo "the serial line ended" >/dev/console
poweroff -f
`

// machine is a running guest.
type machine struct {
	qemu    *exec.Cmd
	console string
	in      io.Writer
	out     chan string // lines of the command line, closed at its end
	ended   chan error
}

// boot starts a guest and waits until it takes commands.
func boot(ctx context.Context, image, initramfs, dir string) (*machine, error) {
	m := &machine{console: filepath.Join(dir, "console.log"), out: make(chan string, 16), ended: make(chan error, 1)}
	m.qemu = exec.Command("qemu-system-x86_64",
		"-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-kernel", image, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 rdinit=/init",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-display", "none", "-no-reboot", "-nodefaults", "-serial", "file:"+m.console, "-serial", "stdio")
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var said strings.Builder
	m.qemu.Stderr = &said
	in, err := m.qemu.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := m.qemu.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.in = in
	if err := cluster.StartCommand(m.qemu); err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	go func() { // ends with qemu
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			m.out <- strings.TrimRight(line, "\r\n")
		}
		close(m.out)
		err := m.qemu.Wait()
		m.ended <- fmt.Errorf("guest: qemu has ended: %v: %s", err, said.String())
	}()
	if _, err := m.answer(ctx, bootLimit); err != nil {
		m.kill()
		return m, fmt.Errorf("guest: boot: %w", err)
	}
	return m, nil
}

// kill ends the guest.
func (m *machine) kill() {
	_ = m.qemu.Process.Kill()
	for range m.out { // until its end, so that the reader ends
	}
}

// result is how a command in the guest ended.
type result struct {
	Code   int
	Output string
}

// run runs a shell script in the guest.
func (m *machine) run(ctx context.Context, limit time.Duration, script string) (result, error) {
	if _, err := io.WriteString(m.in, base64.StdEncoding.EncodeToString([]byte(script))+"\n"); err != nil {
		return result{}, fmt.Errorf("guest: %w", err)
	}
	r, err := m.answer(ctx, limit)
	if err != nil {
		err = fmt.Errorf("guest: %q: %w", script, err)
	}
	return r, err
}

// answer reads one answer. After an error the line is out of step, and the guest of no more use.
func (m *machine) answer(ctx context.Context, limit time.Duration) (result, error) {
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		select {
		case line, ok := <-m.out:
			if !ok {
				return result{}, errors.Join(<-m.ended, errors.New(m.tail(2000)))
			}
			fields := strings.SplitN(line, " ", 3)
			if fields[0] != "@" || len(fields) != 3 {
				continue // before the line is in raw mode it echoes
			}
			code, err := strconv.Atoi(fields[1])
			if err != nil {
				return result{}, fmt.Errorf("answered %q", line)
			}
			output, err := base64.StdEncoding.DecodeString(fields[2])
			return result{code, string(output)}, err
		case <-t.C:
			return result{}, fmt.Errorf("no answer within %v; the console's last words:\n%s", limit, m.tail(3000))
		case <-ctx.Done():
			return result{}, ctx.Err()
		}
	}
}

// tail is the end of what the console said.
func (m *machine) tail(n int) string {
	b, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}
