package gateway

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// errUploadEnded is what a transport reads that goes on reading after it has closed a body.
var errUploadEnded = errors.New("the body was closed")

const (
	// uploadGrace is what an HTTP/1.1 client has to finish sending once it is answered. It reads the answer only then, and would not see
	// it if the connection were closed before. With HTTP/2 it does both at once.
	uploadGrace = time.Second
	// drainBytesMax bounds what is read of that.
	drainBytesMax = 256 << 10
)

// An upload is the body of a stream's request on its way to one upstream. A node may answer, and be done, while its client still
// sends: then the transport waits for its own reading of the body, and that for the client, which waits for the answer. So closing
// an upload interrupts its reading, which closing the body of a server's request need not do.
//
// An upload of which nothing was read may be closed without harm: the next upstream gets another one of the same body.
type upload struct {
	body    io.Reader
	reading *reading
	// grace is how long a client may go on sending after the answer.
	grace  time.Duration
	read   atomic.Bool
	closed atomic.Bool
	atEnd  atomic.Bool
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	u.read.Store(true) // Before looking at closed: either this or Close sees the other.
	if u.closed.Load() {
		return 0, errUploadEnded
	}
	count, err := u.body.Read(p)
	if errors.Is(err, io.EOF) {
		u.atEnd.Store(true)
	}
	return count, err
}

// leave tells an HTTP/1.1 client that is answered before its request was read that there will be no other request on the connection. The server
// looks for the next one while it still reads the rest of this one, which it cannot do in full duplex (it panics), and if the rest does not come,
// it would take that for the next one. REQUIRES: the headers of the answer are not written yet.
func (u *upload) leave(answer http.Header) {
	if u.unread() {
		answer.Set("Connection", "close")
	}
}

// unread is whether an HTTP/1.1 client may still be sending.
func (u *upload) unread() bool { return u != nil && u.grace > 0 && !u.atEnd.Load() }

// drain reads, and throws away, what an HTTP/1.1 client still sends of a request that is answered. When a handler returns, the server interrupts the
// read that the transport may be at, takes that for the end of the body, and closes the connection: whoever is still writing to it is told that this
// failed, and has no use for an answer. And where the transport never began to read, it would wait for the rest without end. body is the server's own,
// which several may read at once. REQUIRES: unread, and the answer is sent.
func (u *upload) drain(body io.Reader) {
	u.closed.Store(true)
	u.reading.interrupt(time.Now().Add(u.grace))
	_, _ = io.CopyN(io.Discard, body, drainBytesMax) // Its end is what was waited for, whatever it is.
}

// Close implements io.Closer.
func (u *upload) Close() error {
	u.closed.Store(true)
	if u.read.Load() && !u.atEnd.Load() {
		u.reading.interrupt(time.Now().Add(u.grace))
	}
	return nil
}

// A reading is how the reading of a request's body is interrupted, until its handler returns. An HTTP/2 transport closes the body of a request in its
// own time, which may be after that, and there is nothing left then to set a deadline of: net/http panics.
type reading struct {
	controller *http.ResponseController
	mu         sync.Mutex
	over       bool
}

func (r *reading) interrupt(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		_ = r.controller.SetReadDeadline(at) // A server without deadlines ends the read with the call.
	}
}

// end says that the handler returns. The server ends the reading then.
func (r *reading) end() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
}
