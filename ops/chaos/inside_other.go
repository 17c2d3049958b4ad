//go:build !linux

package main

import (
	"context"
	"errors"
)

// errNoNamespaces is why some kinds run on Linux only.
var errNoNamespaces = errors.New("this kind needs the namespaces and loop devices of Linux")

type disk struct{}

func inside(context.Context, []string) error                   { return errNoNamespaces }
func settleIn(context.Context) error                           { return errNoNamespaces }
func isInside() bool                                           { return false }
func hosts(context.Context, int) ([]string, [][]string, error) { return nil, nil, errNoNamespaces }
func cutOff(context.Context, int) error                        { return errNoNamespaces }
func joinUp(context.Context) error                             { return errNoNamespaces }
func newDisk(context.Context, string) (*disk, error)           { return nil, errNoNamespaces }
func (*disk) cut() error                                       { return errNoNamespaces }
func (*disk) powerUp(context.Context) error                    { return errNoNamespaces }
func remember(context.Context, []*disk) error                  { return errNoNamespaces }
func (*disk) forget(context.Context) error                     { return errNoNamespaces }
func (*disk) powerDown(context.Context) error                  { return errNoNamespaces }
