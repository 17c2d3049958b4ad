package main

import "github.com/spf13/cobra"

func (p *process) runCommands() []*cobra.Command  { return nil }
func (p *process) lookCommands() []*cobra.Command { return nil }
