package bench

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore/embedded"
)

// natsCommand serves NATS in a process of its own, so that it can be killed, and started again on the same directory.
func natsCommand() *cobra.Command {
	var listen, monitor, dir string
	command := &cobra.Command{
		Use: "nats", Short: "Keep a log", Hidden: true, Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return runNATS(command.Context(), embedded.Options{Dir: dir, Listen: listen, Monitor: monitor, Logger: slog.New(slog.DiscardHandler)})
		},
	}
	command.Flags().StringVar(&listen, "listen", "", "address to serve on")
	command.Flags().StringVar(&monitor, "monitor", "", "address to show its state on")
	command.Flags().StringVar(&dir, "dir", "", "where the log is")
	return command
}

// runNATS serves until ctx ends.
func runNATS(ctx context.Context, options embedded.Options) error {
	server, err := embedded.Start(options)
	if err != nil {
		return err
	}
	<-ctx.Done()
	server.Shutdown()
	return nil
}
