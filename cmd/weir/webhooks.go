package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	webhookv1 "github.com/weirhq/weir/proto/weir/webhook/v1"
	"github.com/weirhq/weir/proto/weir/webhook/v1/webhookv1connect"
)

func (p *process) webhooksCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "webhooks",
		Short: "Deliver public events to your own systems",
		Long: `Deliver public events to a merchant's own systems: each is one POST with the event as JSON, signed as Standard Webhooks
says. Every command needs a token with the scope operator.

Events of one order come in order; an event may come more than once, with the same webhook-id. A delivery that fails is
tried again, after 1s, 2s, 4s and so on up to 5m, jittered. Nothing is dropped: after 10 failures of one event the
endpoint is raised, and only that event is tried on. Once it gets through, all goes on from where it stopped.

An endpoint may have a private address. Redirects are not followed, and an answer has 15s.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.webhooksPut(), c.webhooksList(), c.webhooksDelete(), c.webhooksDeliveries(), c.webhooksReplay(), c.webhooksResume())
	return cmd
}

func (c *client) webhooksPut() *cobra.Command {
	var (
		request requestID
		put     webhookv1.PutEndpointRequest
	)
	cmd := &cobra.Command{
		Use:   "put ENDPOINT --url URL",
		Short: "Add an endpoint, or change one",
		Long: `Add an endpoint, which is given what happens from then on, or change one: what is not given is taken off it, but its
secret, which stays unless --secret is given.

It prints the secret that signs the deliveries, once: 'weir webhooks list' does not show it.`,
		Example: `  weir webhooks put erp --url https://erp.example/weir
  weir webhooks put erp --url https://erp.example/weir --type OrderPlaced --type PaymentCaptured
  weir webhooks put erp --url https://erp.example/weir --paused`,
		Args: exactArgs("ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "url"); err != nil {
				return err
			}
			return change(cmd, c, &request, "put endpoint "+args[0], c.webhooks, webhookv1connect.WebhookServiceClient.PutEndpoint,
				func(id string) *webhookv1.PutEndpointRequest {
					put.RequestId, put.EndpointId = id, args[0]
					return &put
				}, func(answer *webhookv1.PutEndpointResponse) error {
					return fields(c.p.stdout, c.p.painterFor(c.p.stdout), "endpoint", answer.GetEndpointId(), "secret", answer.GetSecret(),
						"revision", revisionText(answer.GetRevision()), "request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&put.Url, "url", "", "`URL` to deliver to")
	flags.StringArrayVar(&put.Types, "type", nil, "deliver only events of this `TYPE`, for example OrderPlaced; repeat it for more")
	flags.BoolVar(&put.Paused, "paused", false, "deliver nothing for now")
	flags.StringVar(&put.Secret, "secret", "", "`SECRET` that signs, whsec_ and base64; without it the one that is there stays, or one is made")
	return cmd
}

func (c *client) webhooksList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the endpoints, and what fails",
		Long: `List the endpoints: "delivering", "paused" by an operator, "failing" when something is tried again, or "raised" when
deliveries failed too often and wait. The lag counts commits that are not delivered yet.`,
		Example: `  weir webhooks list
  weir webhooks list -o json | jq '.endpoints[] | select(.raised)'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, c, "list endpoints", c.webhooks, webhookv1connect.WebhookServiceClient.ListEndpoints, &webhookv1.ListEndpointsRequest{}, c.p.printEndpoints)
		},
	}
}

func (p *process) printEndpoints(answer *webhookv1.ListEndpointsResponse) error {
	paint := p.painterFor(p.stdout)
	rows := newTable("ENDPOINT", "STATE", ">LAG", "URL", "TYPES", "SINCE", "ERROR")
	rows.style = func(column int, cell string) string {
		switch {
		case column != 1:
			return cell
		case cell == endpointDelivering:
			return paint.good(cell)
		case cell == endpointRaised:
			return paint.bad(cell)
		}
		return paint.warn(cell)
	}
	for _, e := range answer.GetEndpoints() {
		types := "all"
		if len(e.GetTypes()) > 0 {
			types = strings.Join(e.GetTypes(), " ")
		}
		since := timeText(e.GetUpdateTime())
		if e.GetRaised() {
			since = timeText(e.GetRaiseTime())
		}
		rows.row(e.GetEndpointId(), endpointState(e), groupDigits(e.GetLagCommits()), e.GetUrl(), types, since, e.GetError())
	}
	return rows.print(p.stdout, paint)
}

// The states of an endpoint, for people.
const (
	endpointDelivering = "delivering"
	endpointPaused     = "paused"
	endpointFailing    = "failing"
	endpointRaised     = "raised"
)

func endpointState(e *webhookv1.Endpoint) string {
	switch {
	case e.GetPaused():
		return endpointPaused
	case e.GetRaised():
		return endpointRaised
	case e.GetError() != "":
		return endpointFailing
	}
	return endpointDelivering
}

func (c *client) webhooksDelete() *cobra.Command {
	var request requestID
	cmd := &cobra.Command{
		Use:   "delete ENDPOINT",
		Short: "End the deliveries to an endpoint, and forget them",
		Long: `End the deliveries to an endpoint, and forget them. What was not delivered yet never is; put again, the endpoint is
given what happens from then on.`,
		Example: `  weir webhooks delete erp`,
		Args:    exactArgs("ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return change(cmd, c, &request, "delete endpoint "+args[0], c.webhooks, webhookv1connect.WebhookServiceClient.DeleteEndpoint,
				func(id string) *webhookv1.DeleteEndpointRequest {
					return &webhookv1.DeleteEndpointRequest{RequestId: id, EndpointId: args[0]}
				}, func(answer *webhookv1.DeleteEndpointResponse) error {
					return fields(c.p.stdout, c.p.painterFor(c.p.stdout), "deleted", args[0], "revision", revisionText(answer.GetRevision()), "request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	return cmd
}

func (c *client) webhooksDeliveries() *cobra.Command {
	var question webhookv1.ListDeliveriesRequest
	cmd := &cobra.Command{
		Use:   "deliveries ENDPOINT",
		Short: "List the newest attempts to deliver to an endpoint",
		Long:  `List the newest attempts to deliver to an endpoint, newest first. The last 1,000 of each endpoint are kept.`,
		Example: `  weir webhooks deliveries erp
  weir webhooks deliveries erp --page-size 100 -o json | jq '.deliveries[] | select(.error != "")'`,
		Args: exactArgs("ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			question.EndpointId = args[0]
			return ask(cmd, c, "list deliveries to "+args[0], c.webhooks, webhookv1connect.WebhookServiceClient.ListDeliveries, &question,
				func(answer *webhookv1.ListDeliveriesResponse) error {
					return c.p.printDeliveries(answer.GetDeliveries())
				})
		},
	}
	flags := cmd.Flags()
	flags.Int32Var(&question.PageSize, "page-size", 0, "attempts a page, at most 100; 0 lets the server choose")
	flags.Uint64Var(&question.Before, "before", 0, "only attempts before this `NUMBER`")
	return cmd
}

func (p *process) printDeliveries(all []*webhookv1.Delivery) error {
	paint := p.painterFor(p.stdout)
	rows := newTable(">NUMBER", "TIME", "EVENT", "TYPE", "ORDER", ">STATUS", ">TOOK", "REPLAYED", "ERROR")
	for _, d := range all {
		replayed := ""
		if d.GetReplayed() {
			replayed = "yes"
		}
		rows.row(groupDigits(d.GetNumber()), timeText(d.GetTime()), d.GetEventId(), d.GetType(), d.GetOrderId(), strconv.Itoa(int(d.GetStatus())),
			d.GetTook().AsDuration().String(), replayed, d.GetError())
	}
	return rows.print(p.stdout, paint)
}

func (c *client) webhooksReplay() *cobra.Command {
	var events []string
	cmd := &cobra.Command{
		Use:   "replay ENDPOINT --event EVENT",
		Short: "Deliver events again, now",
		Long: `Deliver events again, now, one after the other in the order given, each with the id that it has. They are read from the
log, whether they were delivered before or not. It ends at the first that fails, with exit code 1.`,
		Example: `  weir webhooks replay erp --event 0-41-0
  weir webhooks replay erp --event 0-41-0 --event 0-57-2`,
		Args: exactArgs("ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "event"); err != nil {
				return err
			}
			webhooks, err := c.webhooks()
			if err != nil {
				return err
			}
			answer := &webhookv1.ReplayDeliveriesResponse{}
			failed := false
			for _, event := range events { // One call each: a slow endpoint takes its time for each.
				one, err := call(cmd.Context(), c, "replay "+event, webhooks.ReplayDeliveries, &webhookv1.ReplayDeliveriesRequest{EndpointId: args[0], EventIds: []string{event}})
				if err != nil {
					return err
				}
				answer.Deliveries = append(answer.Deliveries, one.GetDeliveries()...)
				failed = failed || one.GetDeliveries()[0].GetError() != ""
				if failed {
					break
				}
			}
			if c.p.json(cmd) {
				err = writeMessage(c.p.stdout, answer)
			} else {
				err = c.p.printDeliveries(answer.GetDeliveries())
			}
			if err == nil && failed {
				err = &problem{code: exitFailure, what: "the endpoint did not take event " + events[len(answer.GetDeliveries())-1], next: "see what it says: weir webhooks deliveries " + args[0]}
			}
			return err
		},
	}
	cmd.Flags().StringArrayVar(&events, "event", nil, "id of an `EVENT`; repeat it for more")
	return cmd
}

func (c *client) webhooksResume() *cobra.Command {
	return &cobra.Command{
		Use:   "resume ENDPOINT",
		Short: "Try at once what failed",
		Long: `Try at once what failed, without waiting for its time. A raised endpoint goes on when it gets through; it does so by
itself too, within five minutes. One that an operator has paused is put without --paused.`,
		Example: `  weir webhooks resume erp`,
		Args:    exactArgs("ENDPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd, c, "resume endpoint "+args[0], c.webhooks, webhookv1connect.WebhookServiceClient.ResumeEndpoint,
				&webhookv1.ResumeEndpointRequest{EndpointId: args[0]}, func(*webhookv1.ResumeEndpointResponse) error {
					return fields(c.p.stdout, c.p.painterFor(c.p.stdout), "resumed", args[0])
				})
		},
	}
}
