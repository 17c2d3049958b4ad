package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// localQueries are the queries that read no view: any node answers them itself.
var localQueries = map[string]bool{
	"/weir.cluster.v1.ClusterService/GetCluster":     true, // What the node knows of the others.
	"/weir.webhook.v1.WebhookService/ListEndpoints":  true, // Webhooks keep a state of their own, on every node.
	"/weir.webhook.v1.WebhookService/ListDeliveries": true,
	"/weir.room.v1.RoomService/Wait":                 true, // The gateway's.
}

func TestEveryQueryOfTheSchemaIsKnownToReadViewsOrNot(t *testing.T) {
	known := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(file.Package()), "weir.") {
			return true
		}
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				procedure := "/" + string(service.FullName()) + "/" + string(method.Name())
				known[procedure] = true
				options, _ := method.Options().(*descriptorpb.MethodOptions)
				query := options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
				if (query || method.IsStreamingServer()) && viewMethods[procedure] == localQueries[procedure] {
					t.Errorf("%s reads: put it into viewMethods if it reads views, else into this test", procedure)
				}
				if method.IsStreamingServer() && viewMethods[procedure] && !watchMethods[procedure] {
					t.Errorf("%s is a stream, and not in watchMethods", procedure)
				}
				if changes := viewMethods[procedure] && !query; changes != (changingViewMethods[procedure] || strings.HasSuffix(procedure, "/ExportUser")) {
					t.Errorf("%s: it is not marked as a query: put it into changingViewMethods", procedure)
				}
			}
		}
		return true
	})
	for procedure := range viewMethods {
		if !known[procedure] {
			t.Errorf("there is no method %s", procedure)
		}
	}
	if len(known) < 40 {
		t.Fatalf("only %d methods were seen", len(known))
	}
}

// The code says which methods come to read a view. A new one that does, a command too, is handed on or fails where there are none.
func TestTheMethodsThatReadViewsAreThoseThatAreHandedOn(t *testing.T) {
	packages, err := parser.ParseDir(token.NewFileSet(), ".", func(info fs.FileInfo) bool { return !strings.HasSuffix(info.Name(), "_test.go") }, 0) //nolint:staticcheck // No types are needed.
	if err != nil {
		t.Fatal(err)
	}
	uses := map[string]map[string]bool{} // by function, the names that it uses
	var methods []string                 // of services
	for _, file := range packages["api"].Files {
		for _, declared := range file.Decls {
			f, ok := declared.(*ast.FuncDecl)
			if !ok || f.Body == nil || f.Name.Name == "NewHandler" {
				continue
			}
			if uses[f.Name.Name] == nil {
				uses[f.Name.Name] = map[string]bool{}
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if selector, ok := n.(*ast.SelectorExpr); ok {
					uses[f.Name.Name][selector.Sel.Name] = true
				}
				return true
			})
			if f.Recv == nil || !f.Name.IsExported() {
				continue
			}
			if receiver, ok := f.Recv.List[0].Type.(*ast.Ident); ok && strings.HasSuffix(receiver.Name, "Service") {
				methods = append(methods, f.Name.Name)
			}
		}
	}
	var reads func(name string, seen map[string]bool) bool
	reads = func(name string, seen map[string]bool) bool {
		if name == "views" {
			return true
		}
		// Methods of services call what is not exported; that a view's method has the name of a service's says nothing.
		if seen[name] {
			return false
		}
		seen[name] = true
		for used := range uses[name] {
			if (used == "views" || !ast.IsExported(used)) && reads(used, seen) {
				return true
			}
		}
		return false
	}
	handedOn := map[string]bool{}
	for procedure := range viewMethods {
		handedOn[procedure[strings.LastIndex(procedure, "/")+1:]] = true
	}
	for _, method := range methods {
		if got := reads(method, map[string]bool{}); got != handedOn[method] {
			t.Errorf("%s reads views: %v, is handed on: %v", method, got, handedOn[method])
		}
	}
	if len(methods) < 40 {
		t.Fatalf("only %d methods were seen", len(methods))
	}
}
