package main

import (
	"fmt"
	"os"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/plan"
)

// plansFileName is the file beside the list of nodes, or in the directory of a dev node, that keeps the active plans over a restart.
const plansFileName = "plans.json"

// followPlans makes what knows the plans that are active on NATS, and runs it behind the gateway. cacheFile keeps them over a restart; empty means
// that nothing does. gateways counts those that share global rates.
func (f *front) followPlans(connection *nats.Conn, cacheFile string, gateways func() int) (*plan.Follower, error) {
	follower, err := plan.NewFollower(plan.Config{CacheFile: cacheFile}, plan.Options{
		Connection: connection,
		Gateway:    gatewayID(),
		Procedures: gateway.Procedures(),
		Policy: plan.Policy{
			// The gateway is there before it runs, and dry runs are made when it does.
			Rates:    func(procedure string) (rate, user, global plan.Rate) { return f.gateway.WithoutPlans(procedure) },
			Gateways: gateways,
		},
		Logger: f.logger,
	})
	if err != nil {
		return nil, err
	}
	f.behind = append(f.behind, follower.Run)
	return follower, nil
}

// gatewayID names this gateway to operators and to other gateways.
func gatewayID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}
