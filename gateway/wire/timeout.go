package wire

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"
)

const (
	connectTimeoutHeader = "Connect-Timeout-Ms"
	grpcTimeoutHeader    = "Grpc-Timeout"
	// The most digits that each protocol allows for a timeout.
	connectTimeoutDigitsMax = 10
	grpcTimeoutDigitsMax    = 8
)

// ErrTimeout is the error of a timeout header that the protocol does not allow.
var ErrTimeout = errors.New("the timeout header is malformed")

// Timeout reads how long the caller of a request waits. given is false when the header is missing or empty. The error is ErrTimeout.
func (p Protocol) Timeout(header http.Header) (timeout time.Duration, given bool, err error) {
	values := header[p.timeoutHeader()]
	if len(values) == 0 || values[0] == "" {
		return 0, false, nil
	}
	if p == GRPC || p == GRPCWeb {
		timeout, err = grpcTimeout(values[0])
	} else {
		timeout, err = scaled(values[0], connectTimeoutDigitsMax, time.Millisecond)
	}
	return timeout, err == nil, err
}

// SetTimeout says in a request's header how long its caller still waits. What is less than the protocol can say is its least.
func (p Protocol) SetTimeout(header http.Header, left time.Duration) {
	header[p.timeoutHeader()] = []string{p.formatTimeout(left)}
}

func (p Protocol) formatTimeout(left time.Duration) string {
	if p != GRPC && p != GRPCWeb {
		return strconv.FormatInt(max(1, left.Milliseconds()), 10)
	}
	// Whole milliseconds are enough down to where they would lose a tenth.
	if millis := left.Milliseconds(); millis >= 10 {
		return strconv.FormatInt(min(millis, 99_999_999), 10) + "m"
	}
	return strconv.FormatInt(max(1, left.Microseconds()), 10) + "u"
}

func (p Protocol) timeoutHeader() string {
	if p == GRPC || p == GRPCWeb {
		return grpcTimeoutHeader
	}
	return connectTimeoutHeader
}

func grpcTimeout(text string) (time.Duration, error) {
	digits, unit := text[:len(text)-1], time.Duration(0)
	switch text[len(text)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, ErrTimeout
	}
	return scaled(digits, grpcTimeoutDigitsMax, unit)
}

// scaled reads decimal digits, at most so many, as that many units. What does not fit is as long as a duration can be.
func scaled(digits string, digitsMax int, unit time.Duration) (time.Duration, error) {
	if digits == "" || len(digits) > digitsMax {
		return 0, ErrTimeout
	}
	amount := int64(0)
	for _, digit := range []byte(digits) {
		if digit < '0' || digit > '9' {
			return 0, ErrTimeout
		}
		amount = amount*10 + int64(digit-'0')
	}
	if amount > math.MaxInt64/int64(unit) {
		return math.MaxInt64, nil
	}
	return time.Duration(amount) * unit, nil
}
