package main

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weirhq/weir/eventstore"
)

// The inspection endpoint of a running node: the commands that look inside (log, projections) reach it on loopback, with
// the token of the node's record. What is a GET reads and changes nothing.
//
//	GET /node                                  lanes of the node
//	GET /log/head?lane=L                       number of the newest commit
//	GET /log/size?lane=L                       how much the lane's log holds
//	GET /log?lane=L&from=N                     commits as frames, see writeFrame, until the reader leaves
//	GET /projections                           how far every view is
//	GET /parked                                parked keys of every view
//	POST /replay?view=V&key=K&dry-run=B        take parked keys in; without view or key, all of them
//	GET /reactors                              how far every reactor is, and how payments stand
//	GET /doctor                                what may be wrong with the log and its servers
//	GET /reads                                 what reads were answered from
//	GET /keys                                  every user's wrapped key, a JSON object each
//	POST /checkpoint                           copy the state into a directory beside it, and name that
//	GET /projections/generations               generations of every view
//	GET /projections/rebuilds                  how every rebuild stands
//	GET /projections/compare?view=V            compare two generations of a view
//	POST /projections/ACTION?view=V&...        start (lanes, speed, swap), pause, resume, swap, rollback or drop a generation
//	GET /verify?sample=N                       compare every view with the fold of the log: progress, then differences
//	GET /verify/redis?sample=N                 compare what Redis holds with the views
const (
	inspectNode        = "/node"
	inspectHead        = "/log/head"
	inspectSize        = "/log/size"
	inspectLog         = "/log"
	inspectProjections = "/projections"
	inspectParked      = "/parked"
	inspectReplay      = "/replay"
	inspectReactors    = "/reactors"
	inspectVerify      = "/verify"
	inspectVerifyRedis = "/verify/redis"
	inspectReads       = "/reads"
	inspectDoctor      = "/doctor"
	inspectKeys        = "/keys"
	inspectCheckpoint  = "/checkpoint"
	// The paths about generations.
	inspectGenerations = "/projections/generations"
	inspectRebuilds    = "/projections/rebuilds"
	inspectCompare     = "/projections/compare"
	inspectRebuild     = "/projections/"
)

// frameHead is number (8 bytes), hash and length (4 bytes) of a commit's frame; its data follows.
const frameHead = 8 + len(eventstore.Hash{}) + 4

// frameStored is about what a stream keeps of a commit beside its data: no frame says it, and for a progress it will do.
const frameStored = 400

// errFrame is the number of a frame that carries an error's text instead of a commit: no commit has number 0.
const errFrame = 0

func writeFrame(w io.Writer, record eventstore.Record) error {
	head := make([]byte, 0, frameHead)
	head = binary.BigEndian.AppendUint64(head, record.Number)
	head = append(head, record.Hash[:]...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(record.Data)))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(record.Data)
	return err
}

func readFrame(r io.Reader) (eventstore.Record, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return eventstore.Record{}, err
	}
	record := eventstore.Record{Number: binary.BigEndian.Uint64(head[:])}
	copy(record.Hash[:], head[8:])
	length := binary.BigEndian.Uint32(head[frameHead-4:])
	if length > 8<<20 {
		return eventstore.Record{}, fmt.Errorf("a frame of %d bytes", length)
	}
	record.Data = make([]byte, length)
	if _, err := io.ReadFull(r, record.Data); err != nil {
		return eventstore.Record{}, err
	}
	if record.Number == errFrame {
		return eventstore.Record{}, frameError(record)
	}
	return record, nil
}

// A laneReader is the part of a log that reading needs.
type laneReader interface {
	Head(ctx context.Context) (uint64, error)
	Size(ctx context.Context) (eventstore.LogSize, error)
	Follow(ctx context.Context, number uint64) (eventstore.Cursor, error)
}

// chainFrame is how a *ChainError travels: the other side must be able to tell damage from a passing fault.
type chainFrame struct {
	Lane   uint32 `json:"lane"`
	Number uint64 `json:"number"`
	Reason string `json:"reason"`
	Other  string `json:"other,omitempty"`
}

func errorFrame(err error) eventstore.Record {
	frame := chainFrame{Other: err.Error()}
	var chain *eventstore.ChainError
	if errors.As(err, &chain) {
		frame = chainFrame{Lane: chain.Lane, Number: chain.Number, Reason: chain.Reason}
	}
	data, _ := json.Marshal(frame) // Numbers and strings always encode.
	return eventstore.Record{Number: errFrame, Data: data}
}

func frameError(record eventstore.Record) error {
	var frame chainFrame
	if err := json.Unmarshal(record.Data, &frame); err != nil {
		return fmt.Errorf("a frame that cannot be read: %w", err)
	}
	if frame.Reason != "" {
		return &eventstore.ChainError{Lane: frame.Lane, Number: frame.Number, Reason: frame.Reason}
	}
	return errors.New(frame.Other)
}

// An inspector answers the commands that look inside a running node.
type inspector struct {
	token    string
	topology eventstore.Topology
	log      func(lane uint32) laneReader
	views    viewSource
	rebuilds rebuildSource
	reactors reactorSource
	copier   copier
	reads    func() readReport
	// doctor looks at the log and its servers. Every commit has to be on at least that many; 0 is what the node was started with.
	doctor func(ctx context.Context, replicasMin int) ([]eventstore.Finding, error)
}

// handler returns the endpoint. Every request needs the token.
func (i *inspector) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+inspectNode, i.serveNode)
	mux.HandleFunc("GET "+inspectHead, i.serveHead)
	mux.HandleFunc("GET "+inspectSize, i.serveSize)
	mux.HandleFunc("GET "+inspectLog, i.serveLog)
	mux.HandleFunc("GET "+inspectProjections, i.serveProjections)
	mux.HandleFunc("GET "+inspectParked, i.serveParked)
	mux.HandleFunc("POST "+inspectReplay, i.serveReplay)
	mux.HandleFunc("GET "+inspectReactors, i.serveReactors)
	mux.HandleFunc("GET "+inspectVerify, i.serveVerify)
	mux.HandleFunc("GET "+inspectVerifyRedis, i.serveVerifyRedis)
	mux.HandleFunc("GET "+inspectReads, i.serveReads)
	mux.HandleFunc("GET "+inspectDoctor, i.serveDoctor)
	mux.HandleFunc("GET "+inspectKeys, i.serveKeys)
	mux.HandleFunc("POST "+inspectCheckpoint, i.serveCheckpoint)
	mux.HandleFunc("GET "+inspectGenerations, i.serveGenerations)
	mux.HandleFunc("GET "+inspectRebuilds, i.serveRebuilds)
	mux.HandleFunc("GET "+inspectCompare, i.serveCompare)
	mux.HandleFunc("POST "+inspectRebuild+"{action}", i.serveRebuild)
	want := []byte("Bearer " + i.token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			http.Error(w, "the token of node.json is needed", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (i *inspector) serveNode(w http.ResponseWriter, _ *http.Request) {
	respond(w, map[string]uint32{"lanes": i.topology.Lanes})
}

func respond(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = writeJSON(w, value) // The caller has left when it fails.
}

// lane reads the lane of a request, and has answered if it is a bad one.
func (i *inspector) lane(w http.ResponseWriter, r *http.Request) (uint32, bool) {
	lane, err := strconv.ParseUint(r.FormValue("lane"), 10, 32)
	if err != nil || lane >= uint64(i.topology.Lanes) {
		http.Error(w, fmt.Sprintf("there is no lane %q: the node has lanes 0 to %d", r.FormValue("lane"), i.topology.Lanes-1), http.StatusBadRequest)
		return 0, false
	}
	return uint32(lane), true
}

func (i *inspector) serveHead(w http.ResponseWriter, r *http.Request) {
	lane, ok := i.lane(w, r)
	if !ok {
		return
	}
	head, err := i.log(lane).Head(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, head)
}

func (i *inspector) serveSize(w http.ResponseWriter, r *http.Request) {
	lane, ok := i.lane(w, r)
	if !ok {
		return
	}
	size, err := i.log(lane).Size(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, laneSize(size))
}

// laneSize is an eventstore.LogSize as it travels.
type laneSize struct {
	First uint64 `json:"first"`
	Head  uint64 `json:"head"`
	Bytes uint64 `json:"bytes"`
}

func (i *inspector) serveLog(w http.ResponseWriter, r *http.Request) {
	lane, ok := i.lane(w, r)
	if !ok {
		return
	}
	from, err := strconv.ParseUint(r.FormValue("from"), 10, 64)
	if err != nil || from == 0 {
		http.Error(w, "from must be a commit number, at least 1", http.StatusBadRequest)
		return
	}
	cursor, err := i.log(lane).Follow(r.Context(), from)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer cursor.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	flusher := http.NewResponseController(w)
	_ = flusher.Flush() // The reader learns that it is connected.
	out := bufio.NewWriterSize(w, 256<<10)
	for {
		if cursor.Buffered() == 0 {
			if out.Flush() != nil || flusher.Flush() != nil {
				return // The reader has left.
			}
		}
		record, err := cursor.Next(r.Context())
		if err != nil {
			if r.Context().Err() == nil {
				_ = writeFrame(out, errorFrame(err))
			}
			break
		}
		if writeFrame(out, record) != nil {
			return
		}
	}
	_ = out.Flush()
}

// keyLine is one line of the answer to inspectKeys. The last one says whether all were sent.
type keyLine struct {
	User  string `json:"user,omitempty"`
	Value []byte `json:"value,omitempty"`
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

func (i *inspector) serveKeys(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := bufio.NewWriterSize(w, 64<<10)
	end := keyLine{End: true}
	err := i.copier.Keys(r.Context(), func(userID string, value []byte) error {
		return writeJSON(out, keyLine{User: userID, Value: value})
	})
	if err != nil {
		end.Error = err.Error()
	}
	_ = errors.Join(writeJSON(out, end), out.Flush()) // The caller has left when it fails.
}

func (i *inspector) serveCheckpoint(w http.ResponseWriter, r *http.Request) {
	dir, err := i.copier.Checkpoint(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	respond(w, dir)
}

// A remoteNode reads through the inspection endpoint of a running node.
type remoteNode struct {
	record nodeRecord
	client *http.Client
}

// inspectDialMax bounds the wait for a running node's first answer.
const inspectDialMax = 3 * time.Second

// dialNode returns the node that runs on the directory, or nil when none answers.
func dialNode(ctx context.Context, record *nodeRecord) (*remoteNode, eventstore.Topology) {
	if record == nil || record.Inspect == "" {
		return nil, eventstore.Topology{}
	}
	n := &remoteNode{record: *record, client: &http.Client{}}
	ctx, cancel := context.WithTimeout(ctx, inspectDialMax)
	defer cancel()
	var node struct{ Lanes uint32 }
	if err := n.getJSON(ctx, inspectNode, nil, &node); err != nil {
		return nil, eventstore.Topology{}
	}
	topology := eventstore.Topology{Lanes: node.Lanes}
	if topology.Validate() != nil {
		return nil, eventstore.Topology{}
	}
	return n, topology
}

// get asks for a path. The caller closes the body.
func (n *remoteNode) get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	return n.ask(ctx, http.MethodGet, path, query)
}

// ask sends a request. The caller closes the body.
func (n *remoteNode) ask(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, n.record.Inspect+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+n.record.Token)
	response, err := n.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the running node (pid %d): %w", n.record.PID, err)
	}
	if response.StatusCode == http.StatusConflict {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096)) // Whatever came of it.
		return nil, errors.Join(rebuildProblem(errors.New(strings.TrimSpace(string(text)))), response.Body.Close())
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096)) // Whatever came of it.
		return nil, errors.Join(fmt.Errorf("the running node (pid %d) says: %s", n.record.PID, text), response.Body.Close())
	}
	return response.Body, nil
}

func (n *remoteNode) getJSON(ctx context.Context, path string, query url.Values, answer any) error {
	body, err := n.get(ctx, path, query)
	if err != nil {
		return err
	}
	return errors.Join(json.NewDecoder(body).Decode(answer), body.Close())
}

// Keys implements copier.
func (n *remoteNode) Keys(ctx context.Context, each func(userID string, value []byte) error) error {
	body, err := n.get(ctx, inspectKeys, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for lines := json.NewDecoder(body); ; {
		var line keyLine
		switch err := lines.Decode(&line); {
		case err != nil:
			return &problem{code: exitUnavailable, what: "the node stopped while its users' keys were read", cause: err, next: "run the command again"}
		case line.Error != "":
			return errors.New(line.Error)
		case line.End:
			return nil
		}
		if err := each(line.User, line.Value); err != nil {
			return err
		}
	}
}

// Checkpoint implements copier.
func (n *remoteNode) Checkpoint(ctx context.Context) (dir string, err error) {
	body, err := n.ask(ctx, http.MethodPost, inspectCheckpoint, nil)
	if err != nil {
		return "", err
	}
	return dir, errors.Join(json.NewDecoder(body).Decode(&dir), body.Close())
}

// remoteLane is one lane of a running node.
type remoteLane struct {
	node *remoteNode
	lane uint32
}

func (l remoteLane) query() url.Values {
	return url.Values{"lane": {strconv.FormatUint(uint64(l.lane), 10)}}
}

func (l remoteLane) Head(ctx context.Context) (uint64, error) {
	var head uint64
	err := l.node.getJSON(ctx, inspectHead, l.query(), &head)
	return head, err
}

func (l remoteLane) Size(ctx context.Context) (eventstore.LogSize, error) {
	var size laneSize
	err := l.node.getJSON(ctx, inspectSize, l.query(), &size)
	return eventstore.LogSize(size), err
}

func (l remoteLane) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	ctx, cancel := context.WithCancel(ctx)
	query := l.query()
	query.Set("from", strconv.FormatUint(number, 10))
	body, err := l.node.get(ctx, inspectLog, query)
	if err != nil {
		cancel()
		return nil, err
	}
	return &remoteCursor{body: body, reader: bufio.NewReaderSize(body, 256<<10), cancel: cancel}, nil
}

// remoteCursor implements eventstore.Cursor. Its context is that of Follow: Next's only counts before it waits.
type remoteCursor struct {
	body   io.Closer
	reader *bufio.Reader
	cancel context.CancelFunc
}

func (c *remoteCursor) Next(ctx context.Context) (eventstore.Record, error) {
	if err := ctx.Err(); err != nil {
		return eventstore.Record{}, err
	}
	record, err := readFrame(c.reader)
	record.Stored = len(record.Data) + frameStored
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return eventstore.Record{}, &problem{
			code: exitUnavailable, what: "the node stopped while its log was read", cause: err,
			next: "run the command again: without a node, the log is read from the directory",
		}
	}
	return record, err
}

func (c *remoteCursor) Buffered() int {
	if c.reader.Buffered() < frameHead {
		return 0
	}
	head, err := c.reader.Peek(frameHead)
	if err != nil || c.reader.Buffered()-frameHead < int(binary.BigEndian.Uint32(head[frameHead-4:])) {
		return 0
	}
	return 1
}

func (c *remoteCursor) Close() {
	c.cancel()
	_ = c.body.Close() // It was only read.
}
