package domain

import (
	"errors"
	"fmt"
	"strconv"
)

// Limits of webhook endpoints.
const (
	// EndpointsMax is how many endpoints there may be: each of them follows every lane (I8).
	EndpointsMax = 64
	// EndpointIDLenMax is the longest id, in characters of a-z 0-9 -.
	EndpointIDLenMax = 40
	// EndpointURLBytesMax is the longest URL.
	EndpointURLBytesMax = 2000
	// SealedSecretBytesMax is the longest sealed secret.
	SealedSecretBytesMax = 512
	// EndpointTypesMax is how many types of events an endpoint may choose.
	EndpointTypesMax = 64
)

// PutWebhookEndpoint says where public events are delivered to, or changes it. Saying it again says it again: only its request
// makes it the same.
type PutWebhookEndpoint struct {
	EndpointID string
	URL        string
	// SealedSecret signs the deliveries; it is sealed, so that nobody who reads the log can.
	SealedSecret []byte
	// Types of the events that are delivered; none means all.
	Types []string
	// Paused says that nothing is to be delivered for now.
	Paused bool
	// By is the subject who asked.
	By string
}

// DeleteWebhookEndpoint ends the deliveries to an endpoint.
type DeleteWebhookEndpoint struct {
	EndpointID string
	By         string
}

func (PutWebhookEndpoint) isCommand()    {}
func (DeleteWebhookEndpoint) isCommand() {}

// WebhookEndpointPut says where public events are delivered to, from its log time on if that is new.
type WebhookEndpointPut struct {
	EndpointID   string
	URL          string
	SealedSecret []byte
	Types        []string
	Paused       bool
	By           string
}

// WebhookEndpointDeleted says that nothing is delivered to an endpoint any more.
type WebhookEndpointDeleted struct {
	EndpointID string
	By         string
}

func (WebhookEndpointPut) isEvent()     {}
func (WebhookEndpointDeleted) isEvent() {}

// ErrEndpointLimit is the sentinel of an EndpointLimitError.
var ErrEndpointLimit = errors.New("endpoint limit")

// EndpointLimitError refuses one webhook endpoint more than there may be (I8). What is there can be changed.
type EndpointLimitError struct{ Limit int }

func (e *EndpointLimitError) Error() string {
	return fmt.Sprintf("there are %d endpoints already, which is the most", e.Limit)
}

// Unwrap returns ErrEndpointLimit.
func (e *EndpointLimitError) Unwrap() error { return ErrEndpointLimit }

// Reason returns ReasonEndpointLimit.
func (e *EndpointLimitError) Reason() Reason { return ReasonEndpointLimit }

// Facts returns the limit.
func (e *EndpointLimitError) Facts() map[string]string {
	return map[string]string{"limit": strconv.Itoa(e.Limit)}
}

func (*EndpointLimitError) isRefusal() {}

func (c PutWebhookEndpoint) decide(s State) ([]Event, error) {
	if err := checkEndpointID(c.EndpointID); err != nil {
		return nil, err
	}
	if c.URL == "" {
		return nil, &InvalidArgumentError{Argument: "url", Problem: "it is empty"}
	}
	if err := checkText("url", c.URL, EndpointURLBytesMax); err != nil {
		return nil, err
	}
	if size := len(c.SealedSecret); size == 0 || size > SealedSecretBytesMax {
		return nil, &InvalidArgumentError{Argument: "sealed_secret", Problem: fmt.Sprintf("it has %d bytes, want 1 to %d", size, SealedSecretBytesMax)}
	}
	if len(c.Types) > EndpointTypesMax {
		return nil, &InvalidArgumentError{Argument: "types", Problem: fmt.Sprintf("there are %d, want at most %d", len(c.Types), EndpointTypesMax)}
	}
	for i, name := range c.Types {
		if !validName(name) {
			return nil, &InvalidArgumentError{Argument: fmt.Sprintf("types[%d]", i), Problem: nameProblem}
		}
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	if count, known := s.WebhookEndpoints(c.EndpointID); !known && count >= EndpointsMax {
		return nil, &EndpointLimitError{Limit: EndpointsMax}
	}
	return []Event{WebhookEndpointPut(c)}, nil
}

func (c DeleteWebhookEndpoint) decide() ([]Event, error) {
	if err := checkEndpointID(c.EndpointID); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	return []Event{WebhookEndpointDeleted(c)}, nil
}

func checkEndpointID(id string) error {
	valid := id != "" && len(id) <= EndpointIDLenMax
	for i := range len(id) {
		b := id[i]
		valid = valid && ('a' <= b && b <= 'z' || '0' <= b && b <= '9' || b == '-')
	}
	if !valid {
		return &InvalidArgumentError{Argument: "endpoint_id", Problem: fmt.Sprintf("it is not 1 to %d characters of a-z 0-9 -", EndpointIDLenMax)}
	}
	return nil
}
