package replication

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"lockstep/viewsvc"
)

// pingRetry is the pause after a ping that failed. The client has already tried every view server.
const pingRetry = 100 * time.Millisecond

// pingLoop tells the view service that the node is alive and carries out its orders. The service holds each ping until
// there is news, so that a view arrives at once.
func (n *Node) pingLoop() {
	var last viewsvc.PingReply
	lost := false
	for n.ctx.Err() == nil {
		req := n.ping(last)
		req.Replicas, req.Absent = n.reports()
		reply, err := n.view.Ping(n.ctx, req)
		switch {
		case n.ctx.Err() != nil:
			return
		case errors.Is(err, viewsvc.ErrForeignCluster), errors.Is(err, viewsvc.ErrDuplicateNode), errors.Is(err, viewsvc.ErrInvalid):
			n.cancel(fmt.Errorf("node %s: %w", n.opts.ID, err))
			return
		case err != nil:
			if !lost {
				n.opts.OnEvent(Event{Kind: EventViewLost, Err: err})
			}
			lost = true
			select {
			case <-n.ctx.Done():
			case <-time.After(pingRetry):
			}
			continue
		}
		if lost {
			n.opts.OnEvent(Event{Kind: EventViewFound})
		}
		lost = false
		last = reply
		if err := n.home.join(reply.Cluster); err != nil {
			n.cancel(err)
			return
		}
		for _, o := range reply.Volumes {
			n.obey(o)
		}
	}
}

// farewell tells the view service that the node leaves on purpose.
func (n *Node) farewell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	// An error changes nothing: the service finds out by itself.
	req := n.ping(viewsvc.PingReply{})
	req.Bye = true
	_, _ = n.view.Ping(ctx, req)
}

// ping is what every ping says, in answer to the last reply.
func (n *Node) ping(last viewsvc.PingReply) viewsvc.PingRequest {
	return viewsvc.PingRequest{Cluster: n.home.cluster(), Node: n.opts.ID, Incarnation: n.incarnation, PID: os.Getpid(),
		Addr: n.peers.Addr().String(), NBD: n.nbdAt.Addr().String(), Seq: n.pings.Add(1), Echo: last.Seq, News: last.News}
}

func (n *Node) reports() ([]viewsvc.ReplicaReport, []viewsvc.Absence) {
	n.mu.Lock()
	var absent []viewsvc.Absence
	for id, a := range n.absent {
		absent = append(absent, viewsvc.Absence{Volume: id, Error: a.text()})
	}
	n.mu.Unlock()
	list := n.replicaStats()
	reports := make([]viewsvc.ReplicaReport, len(list))
	for i, s := range list {
		reports[i] = s.ReplicaReport
	}
	slices.SortFunc(reports, func(a, b viewsvc.ReplicaReport) int { return strings.Compare(string(a.Volume), string(b.Volume)) })
	slices.SortFunc(absent, func(a, b viewsvc.Absence) int { return strings.Compare(string(a.Volume), string(b.Volume)) })
	return reports, absent
}

// obey carries out what the view service says about one volume. What may take long is done beside the pings.
func (n *Node) obey(o viewsvc.VolumeOrders) {
	d := n.deskOf(o.Volume.ID)
	switch {
	case o.Delete && d != nil:
		n.beside(o.Volume, func(error) error { return n.deleteReplica(o.Volume, d.r) })
	case o.Delete && n.home.has(o.Volume.ID):
		n.beside(o.Volume, func(error) error { return n.deleteReplica(o.Volume, nil) })
	case o.Delete:
		n.settled(o.Volume.ID)
	case d != nil:
		d.order(o)
	case o.Replica == "":
		n.beside(o.Volume, func(before error) error { return n.renew(o, before) })
	}
}
