package main

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weirhq/weir/projections"
)

// lanesOf are views that are as a test says.
type lanesOf []projections.ProjectionStatus

func (l lanesOf) Status() []projections.ProjectionStatus { return l }

func TestMetricsCountParkedKeysOverAllLanes(t *testing.T) {
	handler := metricsHandler(nodeMetrics{views: []laneViews{
		lanesOf{{Projection: "orders", ParkedKeys: 2, ParkedOrders: 2}, {Projection: "stock"}},
		lanesOf{{Projection: "orders", ParkedKeys: 1, ParkedOrders: 4}, {Projection: "stock", ParkedKeys: 1}},
	}})
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	wantText(t, response.Body.String(),
		`weir_view_parked_keys{view="orders"} 3`, `weir_view_parked_orders{view="orders"} 6`,
		`weir_view_parked_keys{view="stock"} 1`, `weir_view_parked_orders{view="stock"} 0`,
		"# TYPE weir_view_parked_keys gauge")
}

func TestANodeShowsItsMetricsWhereItIsTold(t *testing.T) {
	n := startDev(t, t.TempDir(), "--metrics-listen", "127.0.0.1:0")
	operator, path, ok := strings.Cut(n.lines.Metrics, "/metrics")
	if !ok || path != "" {
		t.Fatalf("it says that its metrics are at %q", n.lines.Metrics)
	}
	text := metricsOf(t, operator)
	for _, view := range projections.Projections {
		wantText(t, text, `weir_view_parked_keys{view="`+view.Name+`"} 0`)
	}
}
