package room

import (
	"context"
	_ "embed" // the scripts
	"fmt"

	"github.com/redis/go-redis/v9"
)

// NewRedisUses has gateways share who has used a turn through Redis. Prefix begins every key there.
func NewRedisUses(client redis.UniversalClient, prefix string) Uses {
	return &redisUses{client: client, prefix: prefix + ":room:"}
}

type redisUses struct {
	client redis.UniversalClient
	prefix string
}

//go:embed take.lua
var takeSource string

//go:embed giveback.lua
var giveBackSource string

var takeScript, giveBackScript = redis.NewScript(takeSource), redis.NewScript(giveBackSource)

// Take implements Uses.
func (u *redisUses) Take(ctx context.Context, use Use) (bool, error) {
	taken, err := takeScript.Run(ctx, u.client, []string{u.prefix + use.Key}, use.Order, use.Entered, use.Now, max(1, use.Keep.Milliseconds())).Bool()
	if err != nil {
		return false, fmt.Errorf("take a turn in Redis: %w", err)
	}
	return taken, nil
}

// GiveBack implements Uses.
func (u *redisUses) GiveBack(ctx context.Context, use Use) error {
	if err := giveBackScript.Run(ctx, u.client, []string{u.prefix + use.Key}, use.Order).Err(); err != nil {
		return fmt.Errorf("give a turn back in Redis: %w", err)
	}
	return nil
}
