// Package gateway is the room for what stands in front of nodes: flow control, breaking, degradation. It knows the wire only,
// never the log. So far it is empty: clients speak to a node's own API.
package gateway
