package eventstore

import "fmt"

// Partitions is the number of partitions of the key space. It never changes.
const Partitions = 1024

// LanesMax is the largest number of lanes: one partition each.
const LanesMax = Partitions

// A Topology maps keys to partitions and partitions to lanes. The number of lanes is set once, when the cluster is
// created; it is recorded beside the log and checked at every start.
type Topology struct {
	// Lanes is a power of two, 1 to LanesMax.
	Lanes uint32
}

// Validate returns an error that says what is wrong with the topology.
func (t Topology) Validate() error {
	if t.Lanes == 0 || t.Lanes > LanesMax || t.Lanes&(t.Lanes-1) != 0 {
		return fmt.Errorf("lanes must be a power of two from 1 to %d, not %d", LanesMax, t.Lanes)
	}
	return nil
}

// PartitionOf returns the partition of a key: FNV-1a-32(key) mod 1024. It is the function behind NATS's
// {{partition(1024,…)}} subject mapping, so any client computes the same. Frozen by a golden test.
func PartitionOf(key string) uint32 {
	const offset, prime = 2166136261, 16777619
	h := uint32(offset)
	for i := range len(key) {
		h ^= uint32(key[i])
		h *= prime
	}
	return h % Partitions
}

// LaneOf returns the lane of a partition: lanes are contiguous ranges of partitions.
func (t Topology) LaneOf(partition uint32) uint32 { return partition / (Partitions / t.Lanes) }

// StreamName returns the name of a lane's stream, for example "ORDERS-00".
func StreamName(lane uint32) string { return fmt.Sprintf("ORDERS-%02d", lane) }

// SubjectName returns the only subject of a lane's stream.
func SubjectName(lane uint32) string { return fmt.Sprintf("weir.log.%02d", lane) }
