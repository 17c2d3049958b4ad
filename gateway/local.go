package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
)

// errLocalPanicked is the error of a call whose handler panicked before it had answered.
var errLocalPanicked = errors.New("the handler of this process panicked")

// localBufferMax bounds what a handler may write before its reply is on its way, in bytes. A stream that flushes is on its way at once.
const localBufferMax = 64 << 10

// A localTransport calls a handler of this process as if it were a server: with no socket, and no copy of the request.
type localTransport struct {
	handler http.Handler
	streams sync.WaitGroup
}

// localUnary marks the context of calls whose reply is one message, which the handler has whole before it writes any of it.
type localUnary struct{}

// contextOfUnary marks a call.
func contextOfUnary(ctx context.Context) context.Context {
	return context.WithValue(ctx, localUnary{}, true)
}

// RoundTrip implements http.RoundTripper. A unary call runs on the goroutine of the caller, a stream on one of its own, which ends
// soon after the reply's body is closed.
func (t *localTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	served := *request
	if served.Body == nil {
		served.Body = http.NoBody
	}
	served.RequestURI = served.URL.RequestURI()
	if request.Context().Value(localUnary{}) != nil {
		writer := &localWriter{header: http.Header{}}
		if err := t.serve(writer, &served); err != nil {
			return nil, err
		}
		return writer.response(request, io.NopCloser(&writer.buffer), int64(writer.buffer.Len()), true), nil
	}

	ctx, cancel := context.WithCancel(request.Context())
	reader, pipe := io.Pipe()
	writer := &localWriter{header: http.Header{}, pipe: pipe, started: make(chan struct{})}
	body := &localBody{PipeReader: reader, writer: writer, cancel: cancel}
	failed := make(chan error, 1)
	t.streams.Go(func() {
		err := t.serve(writer, served.WithContext(ctx))
		if err != nil {
			failed <- err
			_ = pipe.CloseWithError(err)
			return
		}
		writer.start()
		if err := writer.drain(); err == nil {
			_ = pipe.Close()
		}
	})
	select {
	case <-writer.started:
		response := writer.response(request, body, -1, false)
		body.response = response
		return response, nil
	case err := <-failed:
		cancel()
		return nil, err
	case <-ctx.Done():
		cancel()
		_ = reader.Close()
		return nil, context.Cause(ctx)
	}
}

// serve runs the handler. A panic is the end of that one call, as in a server.
func (t *localTransport) serve(w *localWriter, r *http.Request) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: %v", errLocalPanicked, value)
		}
	}()
	t.handler.ServeHTTP(w, r)
	return nil
}

// A localWriter is the http.ResponseWriter of one call. Only the handler's goroutine writes to it.
type localWriter struct {
	header http.Header
	// sent is a copy of the header as it was when the reply began.
	sent   http.Header
	status int
	buffer bytes.Buffer
	// pipe takes what is written once the reply has started, nil for a unary call.
	pipe    *io.PipeWriter
	started chan struct{}
	once    sync.Once
}

// Header implements http.ResponseWriter.
func (w *localWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. Informational replies are not forwarded.
func (w *localWriter) WriteHeader(status int) {
	if w.status != 0 || (status >= 100 && status < 200) {
		return
	}
	w.status, w.sent = status, w.header.Clone()
	for key := range w.trailer() { // What was set for after the body already.
		delete(w.sent, key)
		delete(w.sent, http.TrailerPrefix+key)
	}
	delete(w.sent, "Trailer")
}

// Write implements io.Writer.
func (w *localWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	count, err := w.buffer.Write(p)
	if w.pipe != nil && w.buffer.Len() > localBufferMax {
		return count, errors.Join(err, w.FlushError())
	}
	return count, err
}

// Flush implements http.Flusher.
func (w *localWriter) Flush() { _ = w.FlushError() }

// FlushError sends what was written. The error says that nobody reads it any more.
func (w *localWriter) FlushError() error {
	w.WriteHeader(http.StatusOK)
	if w.pipe == nil {
		return nil
	}
	w.start()
	return w.drain()
}

func (w *localWriter) start() {
	w.WriteHeader(http.StatusOK)
	w.once.Do(func() { close(w.started) })
}

func (w *localWriter) drain() error {
	if w.buffer.Len() == 0 {
		return nil
	}
	_, err := w.buffer.WriteTo(w.pipe)
	return err
}

// response returns the reply. whole is whether the handler has returned.
func (w *localWriter) response(request *http.Request, body io.ReadCloser, length int64, whole bool) *http.Response {
	w.WriteHeader(http.StatusOK)
	response := &http.Response{
		StatusCode: w.status, Status: http.StatusText(w.status), Proto: request.Proto, ProtoMajor: request.ProtoMajor, ProtoMinor: request.ProtoMinor,
		Header: w.sent, Body: body, ContentLength: length, Request: request,
	}
	if whole {
		response.Trailer = w.trailer()
		if len(response.Trailer) > 0 {
			response.ContentLength = -1
		}
	}
	return response
}

// trailer returns what the handler has set for after the body: what it announced, and what it marked with http.TrailerPrefix.
// REQUIRES: the handler has returned.
func (w *localWriter) trailer() http.Header {
	var trailer http.Header
	add := func(key string, values []string) {
		if trailer == nil {
			trailer = http.Header{}
		}
		trailer[http.CanonicalHeaderKey(key)] = values
	}
	for _, announced := range w.header["Trailer"] {
		for key := range strings.SplitSeq(announced, ",") {
			if key = http.CanonicalHeaderKey(strings.TrimSpace(key)); w.header[key] != nil {
				add(key, w.header[key])
			}
		}
	}
	for key, values := range maps.All(w.header) {
		if key, marked := strings.CutPrefix(key, http.TrailerPrefix); marked {
			add(key, values)
		}
	}
	return trailer
}

// A localBody is the body of a streamed reply.
type localBody struct {
	*io.PipeReader
	writer   *localWriter
	response *http.Response
	cancel   context.CancelFunc
}

// Read implements io.Reader. At the end the trailer is there.
func (b *localBody) Read(p []byte) (int, error) {
	count, err := b.PipeReader.Read(p)
	if errors.Is(err, io.EOF) { // The pipe is closed after the handler has returned.
		b.response.Trailer = b.writer.trailer()
	}
	return count, err
}

// Close implements io.Closer.
func (b *localBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}
