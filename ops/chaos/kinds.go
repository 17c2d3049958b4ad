package main

import (
	"fmt"
	"slices"
)

// A fault is what comes over the node.
type fault uint8

const (
	// kills: kill -9, again and again; the node is started again.
	kills fault = iota
	// pauses: it is stopped where it is for a while, and goes on.
	pauses
	// losesReplies: it answers, and a share of the answers never arrives; the clients ask again.
	losesReplies
	// strikes: one of strikeNames comes over nodes that share their lanes, or over the servers that keep the log.
	strikes
)

// String says what was done, for people.
func (f fault) String() string {
	switch f {
	case kills:
		return "killed"
	case pauses:
		return "paused"
	case losesReplies:
		return "replies lost"
	case strikes:
		return "struck"
	}
	panic(fmt.Sprintf("chaos: bug: fault %d", f))
}

// A kind is one way to torment a node.
type kind struct {
	fault fault
	// pays: the clients pay, capture, refund, void, ship and cancel, through a sandbox provider that goes wrong.
	pays bool
	// scarce: instead of all that, many buyers ask for one unit.
	scarce bool
	// strike is what comes over a cluster, nil in other kinds.
	strike *strike
	// rounds unless told otherwise.
	rounds int
	// says what it is, for people.
	says string
}

// The kinds by name, and kindNames in the order in which they run.
var (
	kindNames = slices.Concat([]string{"orders", "payments", "replies", "pauses", "scarce"}, strikeNames)
	kinds     = withStrikes(map[string]kind{
		"orders":   {fault: kills, rounds: 25, says: "kill -9 under orders and cancellations"},
		"payments": {fault: kills, pays: true, rounds: 25, says: "kill -9 under payments, with a provider that goes wrong and is killed too"},
		"replies":  {fault: losesReplies, pays: true, rounds: 5, says: "5% of the replies are lost, and payments as above"},
		"pauses":   {fault: pauses, pays: true, rounds: 2, says: "SIGSTOP and SIGCONT, and payments as above"},
		"scarce":   {scarce: true, rounds: 5, says: "1,000 buyers ask for one unit at once"},
	})
)

// clusterRounds is how often a cluster is struck unless told otherwise.
const clusterRounds = 20

func withStrikes(all map[string]kind) map[string]kind {
	for _, name := range strikeNames {
		all[name] = kind{fault: strikes, strike: strikesByName[name], rounds: clusterRounds, says: strikesByName[name].says}
	}
	return all
}
