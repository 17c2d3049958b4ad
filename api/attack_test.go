package api_test

import (
	"testing"
	"time"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/attacktest"
)

func TestAttacksAreRefusedAndWriteNothing(t *testing.T) {
	limits := api.Limits{HeaderTimeMax: 300 * time.Millisecond, BodyTimeMax: 300 * time.Millisecond}
	n := serve(t, func(o *api.Options) { o.Limits, o.Cluster = limits, noNodes() })
	attacktest.Run(t, attacktest.Target{
		URL: n.url, Key: n.key, Head: n.head, Commands: n.fakeNode, HeaderTimeMax: limits.HeaderTimeMax, BodyTimeMax: limits.BodyTimeMax,
		StreamsPerConnectionMax: 250, Logs: n.logs.String,
	})
}
