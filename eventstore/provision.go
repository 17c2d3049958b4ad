package eventstore

import (
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// MaxMessageSize is the largest message that a lane's stream takes, in bytes, headers included.
const MaxMessageSize = 8 << 20

// A MissingLogError says that commits which exist, or must be assumed to, are not in the log. Nothing re-creates it silently.
type MissingLogError struct {
	Lane   uint32
	Reason string
}

func (e *MissingLogError) Error() string {
	return fmt.Sprintf("the log of lane %d is missing or incomplete: %s; restore it from a backup", e.Lane, e.Reason)
}

// dedupWindow is how long the server remembers message ids. It only makes the answer to a repeated append quicker.
const dedupWindow = 2 * time.Minute

// laneStream is how a lane's stream is made. Nothing in it may lose a commit: no limit but a refusal, no deletion.
func laneStream(lane uint32, replicas int, maxBytes int64, maxMessageSize int32) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: StreamName(lane), Subjects: []string{SubjectName(lane)}, Description: fmt.Sprintf("Weir: the commits of lane %d", lane),
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxBytes: maxBytes, MaxMsgSize: maxMessageSize, MaxConsumers: -1,
		Duplicates: dedupWindow, DenyDelete: true, DenyPurge: true, Replicas: replicas,
	}
}
