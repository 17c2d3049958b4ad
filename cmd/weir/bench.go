package main

import (
	"github.com/spf13/cobra"

	"github.com/weirhq/weir/ops/bench"
)

// benchCommand is package bench's own; its text is wrapped as the others are, and an example is added.
func (p *process) benchCommand() *cobra.Command {
	cmd := bench.Command()
	cmd.Long = wrapText(cmd.Long, 0)
	cmd.Example = `  weir bench --only place,get --runs 1
  weir bench --duration 10s -o json > bench.json`
	return cmd
}
