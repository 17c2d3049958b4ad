package main

import "github.com/spf13/cobra"

func (p *process) runCommands() []*cobra.Command {
	return []*cobra.Command{p.devCommand(), p.serveCommand(), p.tokenCommand()}
}

func (p *process) lookCommands() []*cobra.Command {
	return []*cobra.Command{p.logCommand(), p.projectionsCommand()}
}
