package lanes

// A Message is what the escrow of one lane tells that of another. It may be lost, repeated or overtaken by a later one.
type Message struct {
	Kind     MessageKind
	SKU      string
	From, To uint32
	// Number of the grant or return that the message is about; for Ask and Answer that of the lane's newest return, for Recall
	// and Verdict that of the newest one that the home lane has reclaimed from it.
	Number uint64
	// Units that move; for Ask and Recall the fewest that help, for Answer those that are idle, for Verdict how many more
	// the lane can have at most.
	Units int64
	// Want is how many units the lane would use. Ask only.
	Want int64
	// Taken is the number of the newest grant that the lane has taken. Ask and Answer only.
	Taken uint64
	// Inflow counts the units that ever came into the centre: a Verdict as of an older inflow does not count. Verdict and
	// Lift only.
	Inflow int64
	// Round is when whoever waits for the answer asked, by its own clock, in Unix nanoseconds: an Ask and its Verdict, a Recall
	// and its Answer have the same one. An answer to an older question does not count.
	Round int64
}

// A MessageKind says what a message is.
type MessageKind uint8

// The messages.
const (
	// MessageAsk: orders of this lane lack units.
	MessageAsk MessageKind = iota + 1
	// MessageGrant carries units from the home lane, MessageTaken says that the lane has them.
	MessageGrant
	MessageTaken
	// MessageRecall calls idle units back, MessageAnswer says what the lane did and still has.
	MessageRecall
	MessageAnswer
	// MessageReturn carries units to the home lane, MessageReclaimed says that it has them.
	MessageReturn
	MessageReclaimed
	// MessageVerdict says that no more than so many units can come, MessageLift that this may have changed.
	MessageVerdict
	MessageLift
)

// fromHome reports whether the home lane sends it, to a lane; the others are sent to the home lane.
func (k MessageKind) fromHome() bool {
	switch k {
	case MessageGrant, MessageRecall, MessageReclaimed, MessageVerdict, MessageLift:
		return true
	case MessageAsk, MessageTaken, MessageAnswer, MessageReturn:
	}
	return false
}

// A Transport carries messages to the escrows of other lanes. Send does not block; it may lose the message.
type Transport interface {
	Send(message Message)
}
