package wire

import (
	"errors"
	"io"
	"math"
	"net/http"

	"connectrpc.com/connect"
)

// frameHeldMax bounds a message that is held back until it is whole. A longer one is forwarded as it comes.
const frameHeldMax = 16 << 10

// An Ending says how a stream that broke is to end.
type Ending func(cause error) *connect.Error

// A stream is the body of an enveloped response. It forwards whole messages, so that it can say at any moment, in the protocol's own
// words, that there will be no more: a server that dies leaves its callers with an error and not with a connection that was reset.
type stream struct {
	protocol Protocol
	response *http.Response
	body     io.ReadCloser
	ending   Ending
	ended    func(code connect.Code, broken error)

	// held is the beginning of a message that is not whole yet.
	held []byte
	// skip counts the bytes to come of a message that is forwarded as it comes, or of the end when it is too long to be read.
	skip uint64
	// tail is what is still to be read of the end that was made up.
	tail []byte
	// code is that of an end of stream that was seen.
	code   connect.Code
	sawEnd bool
	done   bool
}

// untold is a skip to which there is no end: where messages begin is not known any more.
const untold = math.MaxUint64

// Guard makes a reply's body end as its protocol says, whatever becomes of the server. ended is called once, with the code that the call
// ended with, 0 for success, and what broke it, nil for nothing: at the end of the body, or when it is closed before.
// REQUIRES: the protocol is enveloped.
func (r *Reply) Guard(ending Ending, ended func(code connect.Code, broken error)) {
	if !r.protocol.Enveloped() {
		panic("wire: bug: " + r.protocol.String() + " is no stream")
	}
	r.Body = &stream{protocol: r.protocol, response: r.Response, body: r.Body, ending: ending, ended: ended}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	for {
		if len(s.tail) > 0 {
			count := copy(p, s.tail)
			s.tail = s.tail[count:]
			return count, nil
		}
		if s.done {
			return 0, io.EOF
		}
		count := copy(p, s.held)
		if count < len(s.held) { // Who reads so little at a time gets no whole messages.
			s.held, s.skip = append(s.held[:0], s.held[count:]...), untold
			return count, nil
		}
		s.held = s.held[:0]
		read, err := s.body.Read(p[count:])
		count += read
		switch {
		case err == nil:
			count = s.whole(p[:count], len(p))
		case errors.Is(err, io.EOF):
			s.whole(p[:count], 0)
			s.finish(nil)
			return count, io.EOF
		default:
			if count, err = s.breakOff(p[:count], err); err != nil {
				return count, err
			}
		}
		if count > 0 {
			return count, nil
		}
	}
}

// whole follows the envelopes in what was read and returns how much of it may be forwarded. The rest is held, if a message as
// long could become whole within the room that a read has.
func (s *stream) whole(read []byte, room int) int {
	at := uint64(0)
	for {
		if s.skip == untold {
			return len(read)
		}
		over := min(s.skip, uint64(len(read))-at)
		at, s.skip = at+over, s.skip-over
		rest := read[at:]
		if s.skip > 0 || len(rest) == 0 {
			return len(read)
		}
		if len(rest) < envelopeBytes {
			return s.hold(read, int(at), room > envelopeBytes)
		}
		length := envelopeBytes + messageLength(rest)
		if uint64(len(rest)) < length {
			if length <= uint64(min(room, frameHeldMax)) {
				return s.hold(read, int(at), true)
			}
			s.skip = length - uint64(len(rest))
			return len(read)
		}
		if flag := endFlag(s.protocol); flag != 0 && rest[0]&flag != 0 {
			s.sawEnd, s.code = true, codeOfEndMessage(s.protocol, rest[0], rest[envelopeBytes:length])
		}
		at += length
	}
}

// hold keeps what of read comes after at, if it is worth it.
func (s *stream) hold(read []byte, at int, worth bool) int {
	if !worth {
		s.skip = untold
		return len(read)
	}
	s.held = append(s.held[:0], read[at:]...)
	return at
}

// breakOff ends a stream whose server broke off. It returns what was whole before; an error means that a message was forwarded in
// part, so that nothing can be said any more.
func (s *stream) breakOff(read []byte, cause error) (int, error) {
	count := s.whole(read, frameHeldMax)
	s.held = s.held[:0]
	if s.skip > 0 || s.sawEnd {
		s.finish(cause)
		if s.sawEnd {
			return count, io.EOF
		}
		return count, cause
	}
	told := s.ending(cause)
	body, trailer := endOf(s.protocol, told)
	if trailer != nil {
		s.response.Trailer = trailer
	}
	s.tail, s.sawEnd, s.code = body, true, told.Code()
	s.finish(cause)
	return count, nil
}

// finish says how the call ended, once.
func (s *stream) finish(broken error) {
	if s.done {
		return
	}
	s.done = true
	code := s.code
	switch {
	case s.sawEnd:
	case s.protocol == GRPC && broken == nil:
		code = codeOfTrailer(s.response)
	case s.protocol == GRPCWeb && s.response.Header["Grpc-Status"] != nil:
		code, _ = grpcStatus(s.response.Header)
	case s.response.StatusCode != http.StatusOK:
		code = codeOfHTTP(s.response.StatusCode)
	default:
		code = connect.CodeInternal // It ended without saying how.
	}
	s.ended(code, broken)
}

// errClosedEarly is what broke a stream whose caller left.
var errClosedEarly = errors.New("the caller left before the end")

// Close implements io.Closer. Whoever closes before the end left.
func (s *stream) Close() error {
	if !s.done {
		s.sawEnd, s.code = true, connect.CodeCanceled
		s.finish(errClosedEarly)
	}
	return s.body.Close()
}
