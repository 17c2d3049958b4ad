package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// fileBytesMax is the largest policy that is read.
	fileBytesMax = 1 << 20
	// reloadEvery is how often a file is looked at for a change.
	reloadEvery = time.Second
)

// An UnknownKeyError is a key that a policy does not have.
type UnknownKeyError struct {
	// Line is where it is, from 1; Path is where it lies, such as "limits".
	Line int
	Path string
	Key  string
	// Known are the keys that there are, in order.
	Known []string
}

func (e *UnknownKeyError) Error() string {
	where := ""
	if e.Path != "" {
		where = " in " + e.Path
	}
	return fmt.Sprintf("line %d: unknown key %q%s", e.Line, e.Key, where)
}

// Parse reads a policy. Errors name the line; an unknown key is an *UnknownKeyError.
func Parse(text []byte) (Policy, error) {
	var document yaml.Node
	var policy Policy
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) { // Empty, or comments alone.
			return policy, nil
		}
		return policy, plainError(err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return policy, errors.New("there is more than one document; give one")
	}
	if len(document.Content) == 0 {
		return policy, nil
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return policy, nil
	}
	if err := checkKeys(root, reflect.TypeFor[Policy](), ""); err != nil {
		return policy, err
	}
	if err := root.Decode(&policy); err != nil {
		return policy, plainError(err)
	}
	return policy, policy.Validate()
}

// plainError makes YAML's error one sentence.
func plainError(err error) error {
	var types *yaml.TypeError
	if errors.As(err, &types) {
		return errors.New(strings.Join(types.Errors, "; "))
	}
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}

// checkKeys finds the first key that a type has no field for, or that is there twice. Aliases and merges are refused with it: the file is
// to say what it says.
func checkKeys(node *yaml.Node, kind reflect.Type, path string) error {
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if node.Kind == yaml.AliasNode {
		return fmt.Errorf("line %d: aliases are not supported: repeat the value", node.Line)
	}
	switch {
	case node.Kind == yaml.SequenceNode && kind.Kind() == reflect.Slice:
		for _, item := range node.Content {
			if err := checkKeys(item, kind.Elem(), path); err != nil {
				return err
			}
		}
		return nil
	case node.Kind != yaml.MappingNode:
		if kind.Kind() == reflect.Struct && kind.NumField() > 0 && hasKeys(kind) && node.Tag != "!!null" {
			return fmt.Errorf("line %d: %s wants \"key: value\" lines", node.Line, orFile(path))
		}
		return nil
	case kind.Kind() != reflect.Struct && kind.Kind() != reflect.Map:
		return fmt.Errorf("line %d: %s wants one value", node.Line, orFile(path))
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if first := seen[key.Value]; first != 0 {
			return fmt.Errorf("line %d: key %q is there twice, first on line %d", key.Line, key.Value, first)
		}
		seen[key.Value] = key.Line
		var inner reflect.Type
		if kind.Kind() == reflect.Map {
			inner = kind.Elem()
		} else {
			fields := fieldsOf(kind)
			field, known := fields[key.Value]
			if !known {
				return &UnknownKeyError{Line: key.Line, Path: path, Key: key.Value, Known: sortedKeys(fields)}
			}
			inner = field
		}
		if err := checkKeys(value, inner, strings.TrimPrefix(path+"."+key.Value, ".")); err != nil {
			return err
		}
	}
	return nil
}

func orFile(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func hasKeys(kind reflect.Type) bool { return len(fieldsOf(kind)) > 0 }

// fieldsOf maps a struct's keys to their types, those of inlined structs with them.
func fieldsOf(kind reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range kind.NumField() {
		field := kind.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			for inner, kind := range fieldsOf(field.Type) {
				fields[inner] = kind
			}
		case field.IsExported() && name != "" && name != "-":
			fields[name] = field.Type
		}
	}
	return fields
}

func sortedKeys(fields map[string]reflect.Type) []string {
	keys := make([]string, 0, len(fields))
	for key := range fields {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// A File is a policy in a file that may change.
type File struct {
	path string
	// last is the stamp of what was loaded last, good or not.
	last stamp
}

// Open reads the policy in a file. Errors name the file.
func Open(path string) (*File, Policy, error) {
	file := &File{path: path, last: stampOf(path)}
	policy, err := file.load()
	return file, policy, err
}

func (f *File) load() (Policy, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return Policy{}, fmt.Errorf("read the policy: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, fileBytesMax+1))
	if err != nil {
		return Policy{}, fmt.Errorf("read the policy %s: %w", f.path, err)
	}
	if len(text) > fileBytesMax {
		return Policy{}, fmt.Errorf("policy %s is larger than %d bytes", f.path, fileBytesMax)
	}
	policy, err := Parse(text)
	if err != nil {
		return Policy{}, fmt.Errorf("policy %s: %w", f.path, err)
	}
	return policy, nil
}

// Follow calls apply with the policy of the file each time that it has changed, until ctx ends. What cannot be read, or is no policy, or
// is not applied, is logged, and what was applied last stays. It looks once a second, which finds also a file that was replaced.
func (f *File) Follow(ctx context.Context, logger *slog.Logger, apply func(Policy) error) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := stampOf(f.path)
		if now == f.last {
			continue
		}
		f.last = now
		policy, err := f.load()
		if err == nil {
			err = apply(policy)
		}
		if err != nil {
			logger.Error("the policy was changed and is not used: the last good one stays", "file", f.path, "error", err)
			continue
		}
		logger.Info("the policy was changed and is used", "file", f.path)
	}
}

// A stamp changes when a file does.
type stamp struct {
	bytes    int64
	modified int64
}

// stampOf returns a file's stamp, zero when it cannot be had.
func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{bytes: info.Size(), modified: info.ModTime().UnixNano()}
}
