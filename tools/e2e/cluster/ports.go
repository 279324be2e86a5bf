package cluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are chosen below the range that Linux takes for outgoing connections (32768 on), so that a role that
// was killed finds its port free again; and at random, so that two test processes seldom choose the same.
const (
	portMin = 20000
	portMax = 32000
)

// FreePorts finds n addresses on the loopback interface that nobody listens at.
func FreePorts(n int) ([]string, error) { return freePortsAt("127.0.0.1", n) }

// freePortsAt is FreePorts for any address of this machine.
func freePortsAt(host string, n int) ([]string, error) {
	var addrs []string
	for try := 0; len(addrs) < n; try++ {
		if try == 100*n {
			return nil, fmt.Errorf("cluster: no free port between %d and %d", portMin, portMax)
		}
		addr := net.JoinHostPort(host, strconv.Itoa(portMin+rand.IntN(portMax-portMin)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer l.Close() // after the last one was found, so that none is found twice
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
