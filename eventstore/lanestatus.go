package eventstore

// A LaneStatus is how a node stands to a lane.
type LaneStatus struct {
	// Serving says that the node decides the lane now, under Epoch.
	Serving bool
	Epoch   uint64
	// Commit is the newest commit that the node's state of the lane holds, Head the newest that it knows of. HeadKnown is false
	// until it has asked the log.
	Commit, Head uint64
	HeadKnown    bool
	// Queued counts the asks that wait to be decided, DecidedPerSecond those that are answered in a second while there is enough to
	// do; 0 while that is not known.
	Queued           int
	DecidedPerSecond uint64
}

// Lag returns how many commits the state is behind. known is false until the log was asked.
func (s *LaneStatus) Lag() (commits uint64, known bool) {
	return s.Head - min(s.Head, s.Commit), s.HeadKnown
}
