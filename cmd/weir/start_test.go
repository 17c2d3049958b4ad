package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

func TestServersThatDoNotKnowEachOtherYetAreUnavailable(t *testing.T) {
	for _, refused := range []*jetstream.APIError{
		{Code: 400, ErrorCode: 10005, Description: "no suitable peers for placement, peer offline"},
		{Code: 503, ErrorCode: 10008, Description: "JetStream system temporarily unavailable"},
	} {
		err := explainStart(dataDir(t.TempDir()), fmt.Errorf("create bucket WEIR-CLUSTER: %w", refused))
		var p *problem
		if !errors.As(err, &p) || p.code != exitUnavailable || p.next == "" {
			t.Errorf("%v: got %#v, want exit code %d and what to do next", refused, err, exitUnavailable)
		}
	}
}
