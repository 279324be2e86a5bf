package cluster

import (
	"os/exec"
	"runtime"
	"sync"
)

// forker starts the child processes of this one, so that they die with it even if it is killed.
//
// Linux sends the death signal when the thread that forked a child ends, and threads of a Go program do end while it
// runs on. So one goroutine that keeps its thread for ever forks them all.
type forker struct {
	requests chan forkRequest
}

type forkRequest struct {
	cmd *exec.Cmd
	err chan<- error
}

// theForker is made at its first use, once for the process, and is there until its end: its thread has to be.
var theForker = sync.OnceValue(func() *forker {
	f := &forker{requests: make(chan forkRequest)}
	go func() {
		runtime.LockOSThread()
		for r := range f.requests {
			r.err <- r.cmd.Start()
		}
	}()
	return f
})

// StartCommand starts a command that is to die with this process, which its SysProcAttr has to ask for (Pdeathsig).
func StartCommand(cmd *exec.Cmd) error { return theForker().start(cmd) }

// start is cmd.Start on the forker's thread.
func (f *forker) start(cmd *exec.Cmd) error {
	err := make(chan error)
	f.requests <- forkRequest{cmd, err}
	return <-err
}
