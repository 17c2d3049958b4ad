package api

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// jsonCodec is Connect's JSON codec with a limit on nesting. Unknown fields are ignored, so that callers and servers may
// differ by a version.
type jsonCodec struct {
	name      string
	unmarshal protojson.UnmarshalOptions
}

func newJSONCodec(name string, nestingMax int) *jsonCodec {
	return &jsonCodec{name: name, unmarshal: protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: nestingMax}}
}

// Name implements connect.Codec.
func (c *jsonCodec) Name() string { return c.name }

// Marshal implements connect.Codec.
func (c *jsonCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend appends the message's JSON to dst.
func (c *jsonCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a protobuf message", message)
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, m)
}

// Unmarshal implements connect.Codec.
func (c *jsonCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is not a protobuf message", message)
	}
	if len(data) == 0 {
		return errors.New("zero-length payload is not a valid JSON object")
	}
	return c.unmarshal.Unmarshal(data, m)
}
