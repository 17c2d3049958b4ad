package main

import (
	"context"

	"github.com/spf13/cobra"
)

func (p *process) runCommands() []*cobra.Command { return []*cobra.Command{p.tokenCommand()} }
func (p *process) lookCommands() []*cobra.Command {
	return []*cobra.Command{p.logCommand(), p.projectionsCommand()}
}

func (p *process) openStopped(ctx context.Context, dir dataDir, nats string) (*source, error) {
	return nil, nil
}
