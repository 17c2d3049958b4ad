package gateway

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	// The services that a node serves: their descriptors say what may be done with a call.
	_ "github.com/weirhq/weir/proto/weir/campaign/v1"
	_ "github.com/weirhq/weir/proto/weir/catalog/v1"
	_ "github.com/weirhq/weir/proto/weir/cluster/v1"
	_ "github.com/weirhq/weir/proto/weir/order/v1"
	_ "github.com/weirhq/weir/proto/weir/payment/v1"
	_ "github.com/weirhq/weir/proto/weir/points/v1"
	_ "github.com/weirhq/weir/proto/weir/report/v1"
	_ "github.com/weirhq/weir/proto/weir/room/v1"
	_ "github.com/weirhq/weir/proto/weir/user/v1"
	_ "github.com/weirhq/weir/proto/weir/webhook/v1"
)

// A method is what the schema says of an RPC.
type method struct {
	// name is its procedure, /package.Service/Method; what the schema does not have is otherMethod.
	name string
	// unary is whether it has one request and one reply. Of what is not in the schema nobody knows.
	unary bool
	// repeatable is whether the same call again does no harm: it has no side effects, or is idempotent, or its request has a
	// request_id, under which a node answers the second time with what it did the first time (I4). A request whose id is
	// empty is refused before it does anything, so that nobody has to look for it.
	repeatable bool
	// reads is whether it has no side effects.
	reads bool
	// requestID is the field of its requests under which a node does them once, "" for none, and input the name of their message.
	requestID protoreflect.Name
	input     protoreflect.FullName
}

// otherMethod stands for all methods that the schema does not have: callers make names up, and metrics must not grow with them.
var otherMethod = &method{name: "other"}

// ownServices is the prefix of the services that the schema has.
const ownServices = "weir."

// methodsOfSchema lists the methods of all linked services of Weir, by procedure.
func methodsOfSchema() map[string]*method {
	methods := map[string]*method{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			if !strings.HasPrefix(string(service.FullName()), ownServices) {
				continue
			}
			for j := range service.Methods().Len() {
				m := methodOf(service.Methods().Get(j))
				methods[m.name] = m
			}
		}
		return true
	})
	return methods
}

// Procedures returns the procedures of all services of Weir that are linked, /package.Service/Method, in order.
func Procedures() []string { return slices.Sorted(maps.Keys(methodsOfSchema())) }

func methodOf(descriptor protoreflect.MethodDescriptor) *method {
	level := descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	if options, ok := descriptor.Options().(*descriptorpb.MethodOptions); ok && proto.Size(options) > 0 {
		level = options.GetIdempotencyLevel()
	}
	requestID := descriptor.Input().Fields().ByName("request_id")
	m := &method{
		name:  "/" + string(descriptor.Parent().FullName()) + "/" + string(descriptor.Name()),
		unary: !descriptor.IsStreamingClient() && !descriptor.IsStreamingServer(),
		repeatable: level != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN ||
			(requestID != nil && requestID.Kind() == protoreflect.StringKind),
		reads: level == descriptorpb.MethodOptions_NO_SIDE_EFFECTS,
		input: descriptor.Input().FullName(),
	}
	if requestID != nil && requestID.Kind() == protoreflect.StringKind && !m.reads {
		m.requestID = requestID.Name()
	}
	return m
}
