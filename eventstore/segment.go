package eventstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A SegmentWriter writes a run of one lane's commits to a file that stands for itself: compressed, in order, linked by their
// hashes, and with its own end.
//
// A segment is one Zstandard stream (each frame with a checksum) of
//
//	"weir segment 1\n", lane and lanes (4 bytes each), number (8 bytes) and hash (32 bytes) of the commit before
//	for each commit: its number (8 bytes), the length of its bytes (4 bytes), its bytes
//	8 zero bytes, number and hash of the last commit
//
// all big endian. Bytes of commits are those of the log: a segment has the log's own chain.
type SegmentWriter struct {
	lane uint32
	at   Position
	out  *bufio.Writer
	zip  *zstd.Encoder
}

const (
	segmentTitle = "weir segment 1\n"
	// segmentCommitBytesMax is above the largest commit; a length beyond it is damage.
	segmentCommitBytesMax = 8 << 20
	// segmentBufferBytes is what is gathered before it is compressed.
	segmentBufferBytes = 256 << 10
)

// NewSegmentWriter begins a segment of the commits that follow after. The caller closes it; a segment that was not closed does
// not read as a whole one.
func NewSegmentWriter(w io.Writer, lane, lanes uint32, after Position) (*SegmentWriter, error) {
	zip, err := zstd.NewWriter(w, zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("write a segment: %w", err)
	}
	s := &SegmentWriter{lane: lane, at: after, zip: zip, out: bufio.NewWriterSize(zip, segmentBufferBytes)}
	head := binary.BigEndian.AppendUint32([]byte(segmentTitle), lane)
	head = binary.BigEndian.AppendUint32(head, lanes)
	return s, s.write(appendPosition(head, after))
}

func appendPosition(dst []byte, at Position) []byte {
	return append(binary.BigEndian.AppendUint64(dst, at.Number), at.Hash[:]...)
}

// positionBytes is what appendPosition appends.
const positionBytes = 8 + len(Hash{})

func readPosition(src []byte) (at Position) {
	at.Number = binary.BigEndian.Uint64(src)
	copy(at.Hash[:], src[8:])
	return at
}

// Append writes the next commit. One that is not the next of its chain is a *ChainError, and nothing of it is written.
func (s *SegmentWriter) Append(record Record) error {
	_, next, err := nextIn(s.lane, s.at, record)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64(nil, record.Number)
	head = binary.BigEndian.AppendUint32(head, uint32(len(record.Data)))
	s.at = next
	return errors.Join(s.write(head), s.write(record.Data))
}

// nextIn reads the commit that a record is, checks that it is the one after a position of a lane (I2), and returns it with its own
// position.
func nextIn(lane uint32, at Position, record Record) (*Commit, Position, error) {
	commit, err := DecodeCommit(record.Data)
	if err != nil {
		return nil, at, &ChainError{Lane: lane, Number: record.Number, Reason: err.Error()}
	}
	next := Position{Number: record.Number, Hash: HashOf(record.Data)}
	return commit, next, at.CheckAt(commit, next, lane)
}

// Position returns the newest commit that was written.
func (s *SegmentWriter) Position() Position { return s.at }

// Close writes the end.
func (s *SegmentWriter) Close() error {
	err := s.write(appendPosition(make([]byte, 8, 8+positionBytes), s.at))
	if err == nil {
		err = s.out.Flush()
	}
	if err = errors.Join(err, s.zip.Close()); err != nil {
		return fmt.Errorf("write a segment: %w", err)
	}
	return nil
}

func (s *SegmentWriter) write(data []byte) error {
	if _, err := s.out.Write(data); err != nil {
		return fmt.Errorf("write a segment: %w", err)
	}
	return nil
}

// A SegmentReader reads what a SegmentWriter wrote, and checks the chain of all of it.
type SegmentReader struct {
	lane uint32
	at   Position
	in   *bufio.Reader
	zip  *zstd.Decoder
}

// ErrSegmentDamaged says that a segment is not what was written.
var ErrSegmentDamaged = errors.New("the segment is damaged")

// NewSegmentReader opens the segment of a lane that follows after. Any other segment is an error. The caller closes it.
func NewSegmentReader(r io.Reader, lane, lanes uint32, after Position) (*SegmentReader, error) {
	zip, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, fmt.Errorf("read a segment: %w", err)
	}
	s := &SegmentReader{lane: lane, at: after, zip: zip, in: bufio.NewReaderSize(zip, segmentBufferBytes)}
	head := make([]byte, len(segmentTitle)+8+positionBytes)
	if err := s.read(head); err != nil {
		zip.Close()
		return nil, err
	}
	numbers, found := bytes.CutPrefix(head, []byte(segmentTitle))
	if !found {
		zip.Close()
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrSegmentDamaged, segmentTitle)
	}
	if got, of := binary.BigEndian.Uint32(numbers), binary.BigEndian.Uint32(numbers[4:]); got != lane || of != lanes {
		zip.Close()
		return nil, fmt.Errorf("the segment is of lane %d of %d, want lane %d of %d", got, of, lane, lanes)
	}
	if before := readPosition(numbers[8:]); before != after {
		zip.Close()
		return nil, fmt.Errorf("the segment follows commit %d (%.12s…), want commit %d (%.12s…)", before.Number, before.Hash, after.Number, after.Hash)
	}
	return s, nil
}

// Next returns the next commit, and io.EOF at the segment's end. What is cut off or changed is ErrSegmentDamaged or a *ChainError.
func (s *SegmentReader) Next() (Record, error) {
	var head [12]byte
	if err := s.read(head[:8]); err != nil {
		return Record{}, err
	}
	record := Record{Number: binary.BigEndian.Uint64(head[:])}
	if record.Number == 0 {
		return Record{}, s.end()
	}
	if err := s.read(head[8:]); err != nil {
		return Record{}, err
	}
	length := binary.BigEndian.Uint32(head[8:])
	if length > segmentCommitBytesMax {
		return Record{}, fmt.Errorf("%w: commit %d has %d bytes", ErrSegmentDamaged, record.Number, length)
	}
	record.Data = make([]byte, length)
	if err := s.read(record.Data); err != nil {
		return Record{}, err
	}
	commit, next, err := nextIn(s.lane, s.at, record)
	if err != nil {
		return Record{}, err
	}
	record.Hash, record.Prev, record.Headers = next.Hash, s.at.Hash, headers(commit)
	s.at = next
	return record, nil
}

// end checks the end of the segment, and that nothing comes after it.
func (s *SegmentReader) end() error {
	var last [positionBytes]byte
	if err := s.read(last[:]); err != nil {
		return err
	}
	if readPosition(last[:]) != s.at {
		return fmt.Errorf("%w: its end is not that of its last commit", ErrSegmentDamaged)
	}
	switch _, err := s.in.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: something follows its end", ErrSegmentDamaged)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %w", ErrSegmentDamaged, err)
	}
	return io.EOF
}

// read fills data, or fails with ErrSegmentDamaged.
func (s *SegmentReader) read(data []byte) error {
	if _, err := io.ReadFull(s.in, data); err != nil {
		return fmt.Errorf("%w after commit %d: %w", ErrSegmentDamaged, s.at.Number, noEOF(err))
	}
	return nil
}

// noEOF keeps an end that comes too early from looking like one that comes in time.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Position returns the newest commit that was read.
func (s *SegmentReader) Position() Position { return s.at }

// Close gives back what reading took.
func (s *SegmentReader) Close() { s.zip.Close() }
