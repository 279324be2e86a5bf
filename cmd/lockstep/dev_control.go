package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// `lockstep dev restart` talks to the dev process through a unix socket in the directory, whose permissions say who may:
// one JSON object and a newline each way, then the connection is closed.
type (
	devRequest struct {
		Restart string `json:"restart"` // name of a child
	}
	devReply struct {
		PID   int    `json:"pid,omitempty"`
		Error string `json:"error,omitempty"`
	}
)

const (
	devRequestMax  = 4096 // bytes
	devTalkTimeout = 30 * time.Second
)

// socketIn gives a path to a socket in dir that is short however long the name of dir is: the address of a unix socket
// has at most 107 bytes. The caller closes the file after it has used the path.
func socketIn(dir string) (path string, pin *os.File, err error) {
	pin, err = os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", fmt.Sprint(pin.Fd()), devSocketFile), pin, nil
}

// listenDev opens the socket. The caller holds the directory's lock, so that a socket that is there is a dead one's.
func listenDev(dir string) (net.Listener, error) {
	path, pin, err := socketIn(dir)
	if err != nil {
		return nil, err
	}
	defer pin.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Removing it by this path later would hit whatever has the descriptor's number then; the next start removes it.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// serveDev answers requests one after the other until the listener is closed.
func serveDev(l net.Listener, restart func(name string) (pid int, err error)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		answerDev(conn, restart)
	}
}

func answerDev(conn net.Conn, restart func(string) (int, error)) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(devTalkTimeout))
	line, err := bufio.NewReaderSize(conn, devRequestMax).ReadSlice('\n')
	if err != nil {
		return
	}
	var (
		req   devRequest
		reply devReply
	)
	if err := json.Unmarshal(line, &req); err != nil {
		reply.Error = "malformed request"
	} else if reply.PID, err = restart(req.Restart); err != nil {
		reply.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(reply) // the asker is gone: nobody to tell
}

// askDev asks the dev process that owns dir.
func askDev(ctx context.Context, dir string, req devRequest) (devReply, error) {
	ctx, cancel := context.WithTimeout(ctx, devTalkTimeout)
	defer cancel()
	var conn net.Conn
	path, pin, err := socketIn(dir)
	if err == nil {
		defer pin.Close()
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return devReply{}, withHint(fmt.Errorf("dev: no lockstep dev runs in %s", dir),
			"start one with `lockstep dev`, or name the directory of the one that runs with --dir")
	case err != nil:
		return devReply{}, fmt.Errorf("dev: reach the dev process of %s: %w", dir, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(devTalkTimeout))
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return devReply{}, fmt.Errorf("dev: ask: %w", err)
	}
	var reply devReply
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&reply); err != nil {
		return devReply{}, withHint(fmt.Errorf("dev: it gave no answer: %w", err), "see its output")
	}
	if reply.Error != "" {
		return devReply{}, errors.New(reply.Error)
	}
	return reply, nil
}
