package embedded

import (
	"fmt"
	"strings"
)

// nodePublish are the subjects that a node may publish to, nodeSubscribe those that it may subscribe to: what ops/nats/weir.conf
// allows, to which a test holds them.
var nodePublish = []string{
	// Commits, the record of the cluster, users' wrapped keys, public events.
	"weir.log.*", "$KV.WEIR-CLUSTER.topology", "$KV.WEIR-USER-KEYS.*", "weir.events.*.*",
	// Which node decides which lane, and how far reactors are.
	"$KV.WEIR-NODES.*", "$KV.WEIR-LEASES.*", "$KV.WEIR-PLACEMENT.*.*", "$KV.WEIR-REACTORS.>",
	// Commands for lanes of other nodes, what escrows tell each other, and answers. (allow_responses instead of the inboxes
	// would have the server remember a reply for every commit that a node reads.)
	"weir.cmd.*", "weir.escrow.*", "_INBOX.>",
	// Checkpoints (--checkpoints nats): store, replace, and be slowed down while one is read.
	"$O.WEIR-CHECKPOINTS.C.*", "$O.WEIR-CHECKPOINTS.M.*", "$JS.API.STREAM.PURGE.OBJ_WEIR-CHECKPOINTS", "$JS.FC.OBJ_WEIR-CHECKPOINTS.>",
	// Make streams once and finish them. No deletion, and no purge but that of old checkpoints.
	"$JS.API.INFO", "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.UPDATE.*", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*",
	// Read them. Streams of the lanes answer the first alone, from their leaders.
	"$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.>",
	"$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.API.CONSUMER.DELETE.*.*",
	// Erase a user's key. The streams of the lanes refuse deletions themselves.
	"$JS.API.STREAM.MSG.DELETE.KV_WEIR-USER-KEYS",
	// weir doctor: who reads the log, and what may this account do?
	"$JS.API.CONSUMER.LIST.*", "$SYS.REQ.USER.INFO",
}

var nodeSubscribe = []string{"_INBOX.>", "weir.cmd.*", "weir.escrow.*"}

// gatewayNever are the subjects that a gateway may not publish to: its own streams are its own to make, and the nodes' are not. It neither
// writes the log nor says who decides a lane, nor deletes a stream.
var gatewayNever = []string{
	"weir.log.*", "weir.events.*.*", "weir.cmd.*", "weir.escrow.*",
	"$KV.WEIR-CLUSTER.>", "$KV.WEIR-USER-KEYS.>", "$KV.WEIR-NODES.>", "$KV.WEIR-LEASES.>", "$KV.WEIR-PLACEMENT.>", "$KV.WEIR-REACTORS.>", "$O.WEIR-CHECKPOINTS.>",
	"$JS.API.STREAM.DELETE.*", "$JS.API.STREAM.RESTORE.*", "$JS.API.STREAM.PURGE.KV_WEIR-NODES", "$JS.API.STREAM.PURGE.KV_WEIR-LEASES",
	"$JS.API.STREAM.MSG.DELETE.KV_WEIR-USER-KEYS",
}

// gatewaySubscribe is where a gateway is answered, where it hears of other gateways, and where it is asked to try a plan.
var gatewaySubscribe = []string{"_INBOX.>", "weir.gateways", "weir.plans.trial"}

// NodePermissions returns the subjects that a node may publish to, and those that it may subscribe to. Nobody changes them.
func NodePermissions() (publish, subscribe []string) { return nodePublish, nodeSubscribe }

// permit writes permissions as the server's configuration has them: publishRule, allow or deny, is of what may be published.
func permit(publishRule string, publish, subscribe []string) string {
	return fmt.Sprintf("permissions: { publish: { %s: [ %s ] }, subscribe: { allow: [ %s ] } }", publishRule, quoted(publish), quoted(subscribe))
}

func quoted(subjects []string) string { return `"` + strings.Join(subjects, `", "`) + `"` }
