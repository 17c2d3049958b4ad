package main

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pointsv1 "github.com/weirhq/weir/proto/weir/points/v1"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func (p *process) pointsCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "points",
		Short: "Read a user's points",
		Long: `Points: what users are awarded for what they pay, and what is taken back when money is refunded.

A customer's token reads that user's points only. A token with the scope act-as or operator may name another user with
--user. What a unit of money is worth is the node's --points-per-major.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.pointsGet(), c.pointsList())
	return cmd
}

func (c *client) pointsGet() *cobra.Command {
	var (
		min  minRevision
		user string
	)
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Read a user's balance",
		Long: `Read how many points a user has, when they changed last, and how fresh the answer is. With -o json it holds the newest
entry of the ledger as well.`,
		Example: `  weir points get
  weir points get --user alice -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.readPoints(cmd, &min, &pointsv1.GetPointsRequest{UserId: user, PageSize: 1}, func(answer *pointsv1.GetPointsResponse) error {
				changed := ""
				if entries := answer.GetEntries(); len(entries) > 0 {
					changed = timeText(entries[0].GetTime())
				}
				return fields(c.p.stdout, c.p.painterFor(c.p.stdout),
					"user", answer.GetUserId(),
					"balance", groupDigits(answer.GetBalance()),
					"changed", changed,
					"revision", revisionText(answer.GetRevision()),
					"freshness", freshnessText(answer.GetFreshness()))
			})
		},
	}
	min.addFlags(cmd)
	addPointsUserFlag(cmd, &user)
	return cmd
}

func (c *client) pointsList() *cobra.Command {
	var (
		min  minRevision
		page pageFlags
		user string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what a user was given and what was taken back, newest first",
		Long: `List the ledger of a user's points, newest first, one page at a time: what was given or taken back, what the user had
after it, and the payment or refund that it was for. When more follow, the last line says how to ask for them.`,
		Example: `  weir points list
  weir points list --user alice --page-size 500 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.readPoints(cmd, &min, &pointsv1.GetPointsRequest{UserId: user, PageSize: page.size, PageToken: page.token}, c.p.printPoints)
		},
	}
	min.addFlags(cmd)
	addPointsUserFlag(cmd, &user)
	page.addFlags(cmd, "entries", 500)
	return cmd
}

func addPointsUserFlag(cmd *cobra.Command, user *string) {
	cmd.Flags().StringVar(user, "user", "", "`USER` whose points are read; the token's own when not given")
}

// readPoints asks with the question, as of the revision that min wants.
func (c *client) readPoints(cmd *cobra.Command, min *minRevision, question *pointsv1.GetPointsRequest, print func(*pointsv1.GetPointsResponse) error) error {
	what := "get points"
	if question.UserId != "" {
		what += " of " + question.UserId
	}
	return read(cmd, c, min, what, c.points, pointsv1connect.PointsServiceClient.GetPoints,
		func(revision *typev1.Revision, wait *durationpb.Duration) *pointsv1.GetPointsRequest {
			question.MinRevision, question.WaitBudget = revision, wait
			return question
		}, print)
}

func (p *process) printPoints(answer *pointsv1.GetPointsResponse) error {
	rows := newTable("TIME", ">POINTS", ">BALANCE", "FOR")
	for _, entry := range answer.GetEntries() {
		part := entry.GetRefundId()
		if part == "" {
			part = entry.GetPaymentId()
		}
		rows.row(timeText(entry.GetTime()), groupDigits(entry.GetPoints()), groupDigits(entry.GetBalance()), part)
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	noun := "entries"
	if len(answer.GetEntries()) == 1 {
		noun = "entry"
	}
	return p.printEnd(len(answer.GetEntries()), noun, answer.GetNextPageToken(), answer.GetFreshness())
}
