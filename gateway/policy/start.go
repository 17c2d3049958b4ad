package policy

import (
	"reflect"
)

// AtStart names the settings, by their keys, that hold from a start of the gateway on and differ between the policy that it was started with and
// another one: what the other one says of them is not used until the next start.
func (p Policy) AtStart(other Policy) []string {
	p, other = p.WithDefaults(), other.WithDefaults()
	var names []string
	for _, of := range []struct {
		name     string
		now, new any
	}{
		{"limits.header_bytes", p.Limits.HeaderBytes, other.Limits.HeaderBytes},
		{"limits.header_time", p.Limits.HeaderTime, other.Limits.HeaderTime},
		{"limits.reply_time", p.Limits.ReplyTime, other.Limits.ReplyTime},
		{"limits.idle_time", p.Limits.IdleTime, other.Limits.IdleTime},
		{"limits.streams_per_connection", p.Limits.StreamsPerConnection, other.Limits.StreamsPerConnection},
		{"board", p.Board, other.Board},
		{"room", p.Room, other.Room},
	} {
		if !reflect.DeepEqual(of.now, of.new) {
			names = append(names, of.name)
		}
	}
	return names
}
