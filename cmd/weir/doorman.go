package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/weirhq/weir/api"
)

// A doorman answers, at the addresses of a node that is being opened, that it takes no calls yet. The zero value is ready for use.
type doorman struct {
	server *http.Server
	doors  []*door
	at     sync.WaitGroup
}

// doormanStayMax bounds how long an answer may take that the doorman is giving when the node itself is about to serve.
const doormanStayMax = 200 * time.Millisecond

// begin begins to answer at listeners, which stay the caller's. end has to follow.
func (d *doorman) begin(listeners []net.Listener, waitsFor func() string) {
	d.server = api.NewStartingServer(waitsFor)
	for _, listener := range listeners {
		lent := &door{Listener: listener}
		d.doors = append(d.doors, lent)
		d.at.Go(func() { _ = d.server.Serve(lent) }) // It ends with an error in any case: that of its end.
	}
}

// end answers nobody any more, and gives the listeners back, whether ctx has ended or not.
func (d *doorman) end(ctx context.Context) error {
	if d.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), doormanStayMax)
	defer cancel()
	if d.server.Shutdown(ctx) != nil {
		_ = d.server.Close() // Who has sent nothing yet asks the node.
	}
	d.at.Wait()
	var errs []error
	for _, each := range d.doors {
		errs = append(errs, each.open())
	}
	return errors.Join(errs...)
}

// A door is a listener that is lent to a server. When that closes it, nothing more is accepted there, and the listener stays open.
type door struct{ net.Listener }

// Close implements net.Listener.
func (d *door) Close() error { return d.setDeadline(time.Unix(1, 0)) }

// open has the listener accept again.
func (d *door) open() error { return d.setDeadline(time.Time{}) }

func (d *door) setDeadline(at time.Time) error {
	timed, ok := d.Listener.(interface{ SetDeadline(at time.Time) error })
	if !ok {
		return errors.ErrUnsupported
	}
	if err := timed.SetDeadline(at); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
