package eventstore

import (
	"context"
	"fmt"
)

// A StreamHealth is how a lane's stream stands.
type StreamHealth struct {
	// Head is its newest commit.
	Head uint64
	// Replicas are the copies that there are to be, Current those that are there and hold everything.
	Replicas, Current int
	// Leader is the name of the server that leads it, "" when none does.
	Leader string
}

// Health asks the server how a lane's stream stands. It is a hint, as Head is.
func (s *JetStream) Health(ctx context.Context, lane uint32) (StreamHealth, error) {
	var info struct {
		streamState
		Cluster *struct {
			Leader   string `json:"leader"`
			Replicas []struct {
				Current bool `json:"current"`
				Offline bool `json:"offline"`
			} `json:"replicas"`
		} `json:"cluster"`
	}
	if err := apiRequest(ctx, s.nc, s.options.RequestTimeout, "STREAM.INFO."+StreamName(lane), nil, &info); err != nil {
		return StreamHealth{}, fmt.Errorf("look at stream %s: %w", StreamName(lane), err)
	}
	health := StreamHealth{Head: info.State.LastSeq, Replicas: max(1, info.Config.Replicas)}
	if info.Cluster == nil { // One server that stands alone.
		health.Current, health.Leader = 1, s.nc.ConnectedServerName()
		return health, nil
	}
	if health.Leader = info.Cluster.Leader; health.Leader != "" {
		health.Current++
	}
	for _, replica := range info.Cluster.Replicas {
		if replica.Current && !replica.Offline {
			health.Current++
		}
	}
	return health, nil
}
