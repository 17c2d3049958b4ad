package attacktest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// revisionIn reads the revision of a PlaceOrderResponse in JSON or binary.
func revisionIn(t *testing.T, got reply) *typev1.Revision {
	t.Helper()
	var response orderv1.PlaceOrderResponse
	if err := unmarshalAny(got, &response); err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	return response.Revision
}

// sendLarge sends a body that the server does not want to read. It may answer, or cut the connection before the client has
// sent it all: cut is true then.
func (r *rig) sendLarge(t *testing.T, contentType string, body []byte, chunked bool) (_ reply, cut bool) {
	t.Helper()
	var reader io.Reader = bytes.NewReader(body)
	if chunked {
		reader = io.MultiReader(reader) // Hides the length.
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.URL+placeOrder, reader)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+r.ada)
	request.Header.Set("Content-Type", contentType)
	response, err := r.http.Do(request)
	if err != nil {
		return reply{}, true
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{}, true
	}
	return reply{response.StatusCode, response.Header, data}, false
}

// drip writes text a byte at a time until the server closes the connection, and returns what it answered. pause is
// the time between two bytes.
func drip(conn net.Conn, text string, pause time.Duration) string {
	answered := make(chan string, 1)
	go func() {
		answer, _ := io.ReadAll(conn) // Until the server closes it.
		answered <- string(answer)
	}()
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for i := 0; ; i++ {
		select {
		case answer := <-answered:
			return answer
		case <-ticker.C:
			_, _ = conn.Write([]byte{text[i%len(text)]}) // Once the server is gone, the reader says so.
		}
	}
}

func slowClients(t *testing.T, r *rig) {
	var group sync.WaitGroup
	defer group.Wait()
	for _, test := range []struct {
		name  string
		start string
		drip  string
		max   time.Duration
	}{
		{"headers", "", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 1000), r.HeaderTimeMax},
		{"headers after a request line", "POST " + placeOrder + " HTTP/1.1\r\nHost: x\r\n", "X-Slow: " + strings.Repeat("x", 1000), r.HeaderTimeMax},
		{"body", bodyOf(r.ada, 1000), "x", r.BodyTimeMax},
		{"body without a token", bodyOf("none", 1000), "x", r.BodyTimeMax},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n", "\r\nSM\r\n\r\n", r.HeaderTimeMax},
	} {
		conn := r.dial(t)
		if _, err := io.WriteString(conn, test.start); err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			began := time.Now()
			answer := drip(conn, test.drip, test.max/8)
			if took := time.Since(began); took > 4*test.max+2*time.Second {
				t.Errorf("%s: cut after %s, want about %s", test.name, took, test.max)
			}
			if strings.Contains(answer, "HTTP/1.1 200") {
				t.Errorf("%s: answered %q", test.name, answer)
			}
		})
	}
}

// bodyOf is the start of a request whose body does not come.
func bodyOf(token string, length int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", placeOrder, token, length)
}

// HTTP/2 frames (RFC 9113 §6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8

	flagEndStream  = 0x1
	flagEndHeaders = 0x4

	refusedStream = 0x7
)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// headerBlock encodes headers as literals without compression (RFC 7541 §6.2.2).
func headerBlock(pairs ...string) []byte {
	var block []byte
	text := func(s string) {
		if len(s) < 127 {
			block = append(block, byte(len(s)))
		} else { // A 7-bit prefix integer (RFC 7541 §5.1).
			block = append(block, 127)
			rest := len(s) - 127
			for ; rest >= 128; rest >>= 7 {
				block = append(block, byte(rest)|128)
			}
			block = append(block, byte(rest))
		}
		block = append(block, s...)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		block = append(block, 0)
		text(pairs[i])
		text(pairs[i+1])
	}
	return block
}

func (r *rig) openHTTP2(t *testing.T) net.Conn {
	t.Helper()
	conn := r.dial(t)
	// The connection's window is opened wide: without that it has room for some 300 refusals, and the others wait for more.
	const windowMore = 1 << 30
	hello := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(frameSettings, 0, 0, nil)...)
	hello = append(hello, frame(frameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, windowMore))...)
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	return conn
}

func manyStreams(t *testing.T, r *rig) {
	const streams = 10_000
	headers := headerBlock(":method", "POST", ":scheme", "http", ":path", placeOrder, ":authority", "x",
		"content-type", "application/proto", "authorization", "Bearer "+r.ada, "content-length", "1000")

	// Streams whose bodies never come: as many as may be open at once are let in, until their time is over; the others are
	// refused at once. Or the connection ends.
	began := time.Now()
	conn := r.openHTTP2(t)
	written := make(chan struct{})
	go func() {
		defer close(written)
		w := bufio.NewWriter(conn)
		for i := range uint32(streams) {
			if _, err := w.Write(frame(frameHeaders, flagEndHeaders, 2*i+1, headers)); err != nil {
				return // The server cut the connection, as it may.
			}
		}
		_ = w.Flush()
	}()
	letIn, refused := map[uint32]bool{}, 0
	reader := bufio.NewReader(conn)
	for len(letIn)+refused < streams {
		if err := conn.SetDeadline(time.Now().Add(callTimeMax)); err != nil { // It may all take long on a slow machine; nothing of it may wait.
			t.Fatal(err)
		}
		head, payload, err := readFrame(reader)
		if err != nil || head.kind == frameGoAway {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d streams were let in and %d refused, the others wait", len(letIn), refused)
			}
			break
		}
		switch {
		case head.kind == frameRSTStream && binary.BigEndian.Uint32(payload) == refusedStream:
			refused++
		case head.kind == frameRSTStream || (head.kind == frameHeaders && head.flags&flagEndStream != 0) || (head.kind == frameData && head.flags&flagEndStream != 0):
			letIn[head.stream] = true
		}
	}
	if turns := int(time.Since(began)/r.BodyTimeMax) + 1; len(letIn) > turns*r.StreamsPerConnectionMax {
		t.Errorf("%d streams were let in, want at most %d in each of %d turns", len(letIn), r.StreamsPerConnectionMax, turns)
	}
	_ = conn.Close()
	<-written

	// Rapid reset: streams that are opened and reset at once, so that they never count against the limit.
	conn = r.openHTTP2(t)
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	w := bufio.NewWriter(conn)
	var err error
	for i := uint32(0); i < streams && err == nil; i++ {
		_, err = w.Write(append(frame(frameHeaders, flagEndHeaders, 2*i+1, headers), frame(frameRSTStream, 0, 2*i+1, []byte{0, 0, 0, 8})...))
	}
	if err == nil {
		err = w.Flush()
	}
	// An error is the server ending the connection, which it may. Either way others are served:
	began = time.Now()
	want(t, "a call beside a rapid reset", r.call(t, r.ada, getOrder, &orderv1.GetOrderRequest{OrderId: r.order.OrderId}), "ok", "")
	if took := time.Since(began); took > callTimeMax/10 {
		t.Errorf("a call beside a rapid reset took %s (attacker: %v)", took, err)
	}
	_ = conn.Close()
}

// framePayloadMax is the largest frame that a server may send to a client that did not ask for more.
const framePayloadMax = 16 << 10

type frameHead struct {
	kind, flags byte
	stream      uint32
}

func readFrame(r io.Reader) (frameHead, []byte, error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frameHead{}, nil, err
	}
	size := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	if size > framePayloadMax {
		return frameHead{}, nil, errors.New("the frame is too large")
	}
	payload := make([]byte, size)
	_, err := io.ReadFull(r, payload)
	return frameHead{kind: head[3], flags: head[4], stream: binary.BigEndian.Uint32(head[5:])}, payload, err
}

// reflectionLists asks the reflection service for the names of all services.
func (r *rig) reflectionLists(t *testing.T) []string {
	t.Helper()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	client := grpcreflect.NewClient(&http.Client{Transport: transport, Timeout: callTimeMax}, r.URL)
	ctx, cancel := context.WithTimeout(t.Context(), callTimeMax)
	defer cancel()
	stream := client.NewStream(ctx)
	defer stream.Close()
	services, err := stream.ListServices()
	if err != nil {
		t.Fatalf("reflection: %v", err)
	}
	var names []string
	for _, service := range services {
		names = append(names, string(service))
	}
	slices.Sort(names)
	return names
}

func unmarshalAny(got reply, into proto.Message) error {
	if strings.HasPrefix(got.header.Get("Content-Type"), "application/json") {
		return protojson.Unmarshal(got.body, into)
	}
	return proto.Unmarshal(got.body, into)
}
