package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weirhq/weir/projections"
)

// nodeMetrics are a node's metrics for Prometheus. Nothing is counted for them: each scrape asks the views of all lanes.
type nodeMetrics struct {
	views []laneViews
}

// laneViews says how one lane's views are: a *projections.Runner.
type laneViews interface {
	Status() []projections.ProjectionStatus
}

// The descriptions of the metrics.
var (
	parkedKeysDesc = prometheus.NewDesc("weir_view_parked_keys",
		"Keys that the view leaves out since an event of theirs could not be taken in: more than 0 is an alarm.", []string{"view"}, nil)
	parkedOrdersDesc = prometheus.NewDesc("weir_view_parked_orders",
		"Orders that these keys' events are about, at least: who looks at one may be shown less than the log holds.", []string{"view"}, nil)
)

// metricsHandler serves /metrics for Prometheus. It asks nobody who they are.
func metricsHandler(metrics nodeMetrics) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

// Describe implements prometheus.Collector.
func (nodeMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- parkedKeysDesc
	descs <- parkedOrdersDesc
}

// Collect implements prometheus.Collector.
func (m nodeMetrics) Collect(metrics chan<- prometheus.Metric) {
	keys, orders := make(map[string]int), make(map[string]int)
	for _, views := range m.views {
		for _, status := range views.Status() {
			keys[status.Projection] += status.ParkedKeys
			orders[status.Projection] += status.ParkedOrders
		}
	}
	for view, count := range keys {
		metrics <- prometheus.MustNewConstMetric(parkedKeysDesc, prometheus.GaugeValue, float64(count), view)
		metrics <- prometheus.MustNewConstMetric(parkedOrdersDesc, prometheus.GaugeValue, float64(orders[view]), view)
	}
}
