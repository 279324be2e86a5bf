package nbd_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// servePathVar makes the test program a server of diskSize bytes of memory.
const servePathVar = "LOCKSTEP_NBD_BENCH_SERVE"

// TestServeMemory is the process that BenchmarkBesideOthers measures.
func TestServeMemory(t *testing.T) {
	path := os.Getenv(servePathVar)
	if path == "" {
		t.Skip("for BenchmarkBesideOthers")
	}
	list, err := nbd.Listen(context.Background(), "unix:"+path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s, err := nbd.NewServer(nbd.ServerOptions{Exporter: exports{{Name: "disk", Device: memory(t, diskSize)}}})
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(list[0])
	os.Stdin.Read(make([]byte, 1)) // until the benchmark ends
	s.Close()
}

// One connection with requests of one size on a disk in memory, to this server and to others, each a process of its own.
// server-cpu-ns/req is what the server's process uses, the kernel's part included.
func BenchmarkBesideOthers(b *testing.B) {
	for _, load := range []struct {
		op          blockdev.Op
		depth, size int
	}{{blockdev.OpRead, 1, 4096}, {blockdev.OpRead, 32, 4096}, {blockdev.OpWrite, 32, 4096}, {blockdev.OpRead, 4, 1 << 20}, {blockdev.OpWrite, 4, 1 << 20}} {
		for _, name := range []string{"lockstep", "nbdkit", "qemu-nbd"} {
			b.Run(fmt.Sprintf("%v/size=%dk/depth=%d/%s", load.op, load.size>>10, load.depth, name), func(b *testing.B) {
				addr, pid := startForBench(b, name)
				fill(b, addr, diskSize)
				l := newLoader(b, addr, load.depth)
				burst := requests(load.op, load.depth, load.size)
				b.SetBytes(int64(load.size))
				before := processTime(b, pid)
				b.ResetTimer()
				l.run(burst, b.N)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
				b.ReportMetric(float64(processTime(b, pid)-before)/float64(b.N), "server-cpu-ns/req")
			})
		}
	}
}

func startForBench(b *testing.B, name string) (addr string, pid int) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "s")
	var cmd *exec.Cmd
	switch name {
	case "lockstep":
		cmd = exec.Command(os.Args[0], "-test.run=^TestServeMemory$")
		cmd.Env = append(os.Environ(), servePathVar+"="+path)
		in, err := cmd.StdinPipe() // open as long as this process lives
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { in.Close() })
	case "nbdkit":
		cmd = exec.Command("nbdkit", "--foreground", "--exit-with-parent", "--unix", path, "memory", fmt.Sprint(diskSize))
	case "qemu-nbd":
		disk := filepath.Join("/dev/shm", filepath.Base(filepath.Dir(path))+strconv.Itoa(os.Getpid()))
		if err := os.WriteFile(disk, make([]byte, diskSize), 0o600); err != nil {
			b.Skip("no file system in memory: ", err)
		}
		b.Cleanup(func() { os.Remove(disk) })
		cmd = exec.Command("qemu-nbd", "--persistent", "--shared=0", "--export-name=disk", "--format=raw", "--socket="+path, disk)
	}
	if err := cmd.Start(); err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(wireTimeout); ; time.Sleep(time.Millisecond) {
		if d, err := nbd.OpenDisk(context.Background(), "unix:"+path, nbd.ClientOptions{Export: "disk"}); err == nil {
			d.Close()
			return "unix:" + path, cmd.Process.Pid
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s does not serve", name)
		}
	}
}

// clockTick is the unit of times in /proc, USER_HZ, which is 100 everywhere.
const clockTick = 10 * time.Millisecond

// processTime is what a process has used of the CPU, user and system, in ns.
func processTime(b *testing.B, pid int) int64 {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // from the third on
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return ticks * int64(clockTick)
}
