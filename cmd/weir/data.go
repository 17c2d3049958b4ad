package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

const defaultData = "./weir-data"

// A dataDir is where one node keeps everything that it has.
//
//	log/           the streams of the embedded server: the truth
//	state/         Pebble: the lanes' state and the views; made anew from the log when it is deleted
//	witness        the newest commit of each lane that the node saw acknowledged
//	token.key      signs and verifies tokens
//	master.key     wraps the users' keys
//	gateway.secret what the gateway of a dev node signs tickets and seals kept calls with
//	node.json      how to reach the node that runs on it; only while it runs
type dataDir string

func (d dataDir) log() string     { return filepath.Join(string(d), "log") }
func (d dataDir) state() string   { return filepath.Join(string(d), "state") }
func (d dataDir) witness() string { return filepath.Join(string(d), "witness") }
func (d dataDir) node() string    { return filepath.Join(string(d), "node.json") }

// addDataFlag puts --data on a command.
func addDataFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "data", defaultData, "`DIR` with a node's data")
	setting(cmd.Flags(), "data")
}

// make creates the directory. What lies in it is the node's alone.
func (d dataDir) make() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return d.explain(err)
	}
	probe, err := os.CreateTemp(string(d), ".writable-*")
	if err != nil {
		return d.explain(err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// check wants a directory in which a node has run.
func (d dataDir) check() error {
	_, err := os.Stat(d.log())
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.node()); err == nil {
			return nil // A node that keeps its log on another server.
		}
		return usagef("there is no node's data in %s", d).then("say where it is with --data or WEIR_DATA")
	}
	return d.explain(err)
}

// explain says what is wrong with the directory.
func (d dataDir) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return &problem{
			code: exitPermission, what: fmt.Sprintf("no permission for the data directory %s: %v", d, err), cause: err,
			next: "run as the user that owns it, change its owner, or choose another with --data",
		}
	}
	return &problem{code: exitFailure, what: fmt.Sprintf("data directory %s: %v", d, err), cause: err, next: "choose another directory with --data"}
}

// A nodeRecord says how to reach the node that runs on a data directory. Whoever may read the directory may use it.
type nodeRecord struct {
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// API is where clients connect.
	API string `json:"api"`
	// Inspect is the loopback address of the endpoint for the commands that look inside, Token what it asks for.
	Inspect string `json:"inspect"`
	Token   string `json:"token"`
}

// write puts the record into the directory, whole or not at all, for its owner's eyes only.
func (r nodeRecord) write(dir dataDir) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return dir.explain(dir.writeDurably(filepath.Base(dir.node()), append(data, '\n')))
}

// writeDurably puts a file into the directory, whole or not at all, also when the power fails, for its owner's eyes only.
func (d dataDir) writeDurably(name string, data []byte) error {
	file, err := os.CreateTemp(string(d), "."+name+"-*") // CreateTemp makes it 0600.
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(string(d), name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// remove takes the record away, if it is still this node's.
func (r nodeRecord) remove(dir dataDir) error {
	found, err := readNodeRecord(dir)
	if err != nil || found == nil || found.Token != r.Token {
		return err
	}
	return os.Remove(dir.node())
}

// readNodeRecord returns the record, or nil when there is none. A node that was killed leaves its own behind.
func readNodeRecord(dir dataDir) (*nodeRecord, error) {
	data, err := os.ReadFile(dir.node())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, dir.explain(err)
	}
	var record nodeRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return nil, nil //nolint:nilerr // Not a record: as good as none, the next node replaces it.
	}
	return &record, nil
}
