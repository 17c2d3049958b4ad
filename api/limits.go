package api

import (
	"errors"
	"time"
)

// Limits bound what one caller, or all of them, may cost (I8). A zero field means its default.
type Limits struct {
	// RequestBytesMax bounds a request message, decompressed; 0 means 64 KiB. On the wire a body may have 1 KiB more.
	RequestBytesMax int
	// HeaderBytesMax bounds the request line and the headers, and with them a Connect GET; 0 means 32 KiB.
	HeaderBytesMax int
	// CallTimeMax bounds a unary call, whatever deadline its caller asks for; 0 means 30 s. Where none is asked for, GetOrder is bounded by what it waits for.
	CallTimeMax time.Duration
	// HeaderTimeMax bounds the arrival of the headers; 0 means 5 s.
	HeaderTimeMax time.Duration
	// BodyTimeMax bounds the arrival of a request's body, counted from its headers; 0 means 10 s.
	BodyTimeMax time.Duration
	// ReplyTimeMax bounds a unary call from its headers to the last byte of its reply, so that a caller who does not
	// read holds nothing for ever; 0 means 60 s.
	ReplyTimeMax time.Duration
	// IdleTimeMax bounds the life of a connection without a request; 0 means 2 min.
	IdleTimeMax time.Duration
	// StreamsPerConnectionMax bounds the calls at once of one HTTP/2 connection; 0 means 250.
	StreamsPerConnectionMax int
	// WatchesMax bounds the calls that follow views at once; 0 means 10,000.
	WatchesMax int
	// WatchesPerCallerMax bounds those of one token's subject; 0 means 100.
	WatchesPerCallerMax int
	// NestingMax bounds how deep objects and lists of a JSON request lie in each other; 0 means 64.
	NestingMax int
}

// Limits that nobody needs to set.
const (
	// wireBytesExtra is what a body may have on top of its message: the envelopes of gRPC and of streams.
	wireBytesExtra = 1 << 10
	// compressBytesMin is the smallest reply worth compressing: below it the CPU costs more than the bytes.
	compressBytesMin = 8 << 10
	// waitBudgetDefault is how long a query waits for min_revision unless it says so.
	waitBudgetDefault = time.Second
	// retryAfterParked is when to ask again for what is parked: somebody has to look first.
	retryAfterParked = time.Minute
	// retryAfterBehind is when to ask again for a revision that the view has not reached.
	retryAfterBehind = 100 * time.Millisecond
	// retryAfterMoving is when units that are on their way between lanes may have arrived.
	retryAfterMoving = 100 * time.Millisecond
	// retryAfterFull is when to try again what found no room.
	retryAfterFull = 5 * time.Second
	// retryAfterStopped is when the views of a lane may be read again that nothing feeds any more.
	retryAfterStopped = 5 * time.Second
	// retryAfterWatches is when a place to watch from may be free again.
	retryAfterWatches = 5 * time.Second
	// retryAfterMax bounds what a caller is told to wait.
	retryAfterMax = time.Minute
)

func (l Limits) withDefaults() Limits {
	setDefault(&l.RequestBytesMax, 64<<10)
	setDefault(&l.HeaderBytesMax, 32<<10)
	setDefault(&l.CallTimeMax, 30*time.Second)
	setDefault(&l.HeaderTimeMax, 5*time.Second)
	setDefault(&l.BodyTimeMax, 10*time.Second)
	setDefault(&l.ReplyTimeMax, 60*time.Second)
	setDefault(&l.IdleTimeMax, 2*time.Minute)
	setDefault(&l.StreamsPerConnectionMax, 250)
	setDefault(&l.WatchesMax, 10_000)
	setDefault(&l.WatchesPerCallerMax, 100)
	setDefault(&l.NestingMax, 64)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns an error that says which limit is not one.
func (l Limits) Validate() error {
	for name, bad := range map[string]bool{
		"RequestBytesMax": l.RequestBytesMax < 0, "HeaderBytesMax": l.HeaderBytesMax < 0, "CallTimeMax": l.CallTimeMax < 0,
		"HeaderTimeMax": l.HeaderTimeMax < 0, "BodyTimeMax": l.BodyTimeMax < 0, "ReplyTimeMax": l.ReplyTimeMax < 0,
		"IdleTimeMax": l.IdleTimeMax < 0, "StreamsPerConnectionMax": l.StreamsPerConnectionMax < 0,
		"WatchesMax": l.WatchesMax < 0, "WatchesPerCallerMax": l.WatchesPerCallerMax < 0, "NestingMax": l.NestingMax < 0,
	} {
		if bad {
			return errors.New("limit " + name + " is negative")
		}
	}
	return nil
}
