package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
)

// An exitCode is what the process ends with. Scripts may rely on every one of them.
type exitCode int

const (
	exitOK          exitCode = 0
	exitFailure     exitCode = 1
	exitUsage       exitCode = 2
	exitDifference  exitCode = 3
	exitRefused     exitCode = 4
	exitNotFound    exitCode = 5
	exitUnavailable exitCode = 6
	exitPermission  exitCode = 7
	exitData        exitCode = 8
	exitForced      exitCode = 130
)

// exitCodes is the one table of exit codes: help, README and tests read it.
var exitCodes = []struct {
	code    exitCode
	name    string
	meaning string
}{
	{exitOK, "ok", "it worked; for watch, --follow and a node: it ended because it was asked to"},
	{exitFailure, "failure", "something failed that no other code names; the message says what"},
	{exitUsage, "usage", "the command line, the environment, the configuration file or a value was wrong; nothing was done"},
	{exitDifference, "difference", "a verification ran to its end and found differences"},
	{exitRefused, "refused", "the shop's rules refused it (OUT_OF_STOCK, KEY_REUSED, ...); the same again is refused again"},
	{exitNotFound, "not found", "there is no such order or product, or this token may not see it"},
	{exitUnavailable, "unavailable", "nobody answered, not in time, or the answer was 'later'; the same again, with the same request id, is safe"},
	{exitPermission, "permission", "the token is missing, wrong or lacks the scope, or a file may not be read"},
	{exitData, "data", "a node must not start on this data or server (in use, wrong topology, damaged, lossy); do not restart it before someone looked"},
	{exitForced, "forced", "a second signal ended it before its clean stop was done"},
}

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted by a signal")

// A problem is an error as a person needs it: what happened to which thing, and what to do next.
type problem struct {
	code exitCode
	// what happened, and to which thing.
	what string
	// next says what to do; may be empty.
	next string
	// reason and facts come from the server's ErrorInfo, if it sent one.
	reason string
	facts  map[string]string
	// violations name the fields of a request that break their rules.
	violations []string
	// retryAfter is how long the server asked to wait; 0 when it did not.
	retryAfter time.Duration
	cause      error
}

func (p *problem) Error() string { return p.what }

func (p *problem) Unwrap() error { return p.cause }

// usagef says that the caller's input is wrong.
func usagef(format string, args ...any) *problem {
	return &problem{code: exitUsage, what: fmt.Sprintf(format, args...)}
}

// then adds what to do next.
func (p *problem) then(format string, args ...any) *problem {
	p.next = fmt.Sprintf(format, args...)
	return p
}

// problemOf turns any error into a problem.
func problemOf(err error) *problem {
	var p *problem
	var c *connect.Error
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &c):
		return problemOfConnect(c, err)
	case errors.Is(err, os.ErrPermission):
		return &problem{code: exitPermission, what: err.Error(), cause: err, next: "run as the user that owns it, or change its owner"}
	case errors.Is(err, context.DeadlineExceeded):
		return &problem{code: exitUnavailable, what: err.Error(), cause: err}
	}
	return &problem{code: exitFailure, what: err.Error(), cause: err}
}

// exitOfCode maps a Connect code to an exit code.
func exitOfCode(code connect.Code) exitCode {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return exitUsage
	case connect.CodeFailedPrecondition, connect.CodeAlreadyExists:
		return exitRefused
	case connect.CodeNotFound:
		return exitNotFound
	case connect.CodeUnavailable, connect.CodeAborted, connect.CodeResourceExhausted, connect.CodeDeadlineExceeded, connect.CodeCanceled:
		return exitUnavailable
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return exitPermission
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeDataLoss, connect.CodeUnimplemented:
		return exitFailure
	}
	return exitFailure
}

// errorDomain is the domain of every ErrorInfo that Weir sends.
const errorDomain = "weir"

// problemOfConnect reads what the server said: its reason, its facts and when to come again.
func problemOfConnect(c *connect.Error, err error) *problem {
	p := &problem{code: exitOfCode(c.Code()), what: err.Error(), cause: err}
	if prefix := c.Code().String() + ": "; c.Error() == err.Error() {
		p.what = strings.TrimPrefix(c.Error(), prefix)
	}
	for _, detail := range c.Details() {
		value, decodeErr := detail.Value()
		if decodeErr != nil {
			continue // A detail of a newer server: the message stands without it.
		}
		switch d := value.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				p.reason, p.facts = d.GetReason(), d.GetMetadata()
			}
		case *errdetails.BadRequest:
			for _, violation := range d.GetFieldViolations() {
				p.violations = append(p.violations, violation.GetField()+": "+violation.GetDescription())
			}
		case *errdetails.RetryInfo:
			p.retryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	if p.reason == "" && p.what == "" {
		p.what = c.Code().String()
	}
	if r, ok := reasonNamed(p.reason); ok {
		p.next = r.next
	}
	return p
}

// print writes the problem for a person: one line of what, then facts, then what to do.
func (p *problem) print(w io.Writer, paint painter) {
	fmt.Fprint(w, paint.bad("weir: "), p.what)
	if p.reason != "" {
		fmt.Fprint(w, " (", p.reason, ")")
	}
	fmt.Fprintln(w)
	keys := make([]string, 0, len(p.facts))
	for key := range p.facts {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if len(p.violations) > 0 && (key == "argument" || key == "problem") {
			continue // The first violation, once more.
		}
		fmt.Fprintf(w, "  %s: %s\n", key, p.facts[key])
	}
	for _, violation := range p.violations {
		if strings.HasSuffix(p.what, violation) {
			continue // The message ends with it.
		}
		fmt.Fprintf(w, "  %s\n", violation)
	}
	if p.retryAfter > 0 {
		fmt.Fprintf(w, "  %s: %s\n", "retry after", p.retryAfter)
	}
	if p.next != "" {
		fmt.Fprintf(w, "  %s %s\n", paint.dim("next:"), p.next)
	}
}

// jsonProblem is how -o json prints a problem, on stderr, in one line.
type jsonProblem struct {
	Error struct {
		Message    string            `json:"message"`
		Exit       int               `json:"exit"`
		Reason     string            `json:"reason,omitempty"`
		Facts      map[string]string `json:"facts,omitempty"`
		Violations []string          `json:"violations,omitempty"`
		RetryAfter string            `json:"retryAfter,omitempty"`
		Next       string            `json:"next,omitempty"`
	} `json:"error"`
}

func (p *problem) json() jsonProblem {
	var j jsonProblem
	j.Error.Message, j.Error.Exit, j.Error.Reason, j.Error.Facts, j.Error.Next = p.what, int(p.code), p.reason, p.facts, p.next
	j.Error.Violations = p.violations
	if p.retryAfter > 0 {
		j.Error.RetryAfter = p.retryAfter.String()
	}
	return j
}
