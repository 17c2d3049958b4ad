package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	userv1 "github.com/weirhq/weir/proto/weir/user/v1"
)

func (p *process) userCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "user",
		Short: "Export what is known of a user, and erase it",
		Long: `People: export what Weir knows of a user, and erase it.

A user's own token reaches that user; for others it takes the scope operator. The scope act-as is not enough.

User ids are in the clear in the log, for ever: make them opaque. An e-mail address is not.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.userExport(), c.userErase())
	return cmd
}

// Limits of an export.
const (
	// exportPageOrders is how many orders one call asks for.
	exportPageOrders = 100
	// exportPagesMax bounds the calls: ten million orders.
	exportPagesMax = 100_000
)

func (c *client) userExport() *cobra.Command {
	var (
		min        minRevision
		user, file string
	)
	cmd := &cobra.Command{
		Use:   "export --user USER",
		Short: "Write all that is known of a user as one JSON document",
		Long: `Write all that Weir knows of a user as one JSON document: every order with what was given for it and with its events,
newest order first. What is sealed in the log is opened; what was erased is not there.

It is written to --file, which must not be there yet and which only its owner can read, or else to stdout. With
-o json it is one line.`,
		Example: `  weir user export --user alice --file alice.json
  weir user export --user alice -o json | jq '.orders[].order.shippingAddress'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "user"); err != nil {
				return err
			}
			revision, _, err := min.parse()
			if err != nil {
				return err
			}
			if file == "" {
				_, err := c.export(cmd.Context(), c.p.stdout, user, revision, &min, !c.p.json(cmd))
				return err
			}
			return c.exportToFile(cmd, file, user, revision, &min)
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&user, "user", "", "`USER` to export")
	cmd.Flags().StringVar(&file, "file", "", "new `FILE` to write to")
	return cmd
}

// exportToFile writes a file that is whole or not there.
func (c *client) exportToFile(cmd *cobra.Command, name, user string, revision *typev1.Revision, min *minRevision) error {
	if _, err := os.Lstat(name); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return usagef("--file %s is there already", name).then("name a new file")
	}
	part := name + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("export to %s: %w", name, err)
	}
	orders, err := c.export(cmd.Context(), f, user, revision, min, !c.p.json(cmd))
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	if err := os.Rename(part, name); err != nil {
		return fmt.Errorf("export to %s: %w", name, err)
	}
	if c.p.json(cmd) {
		return writeJSON(c.p.stdout, map[string]any{"user": user, "file": name, "orders": orders})
	}
	return fields(c.p.stdout, c.p.painterFor(c.p.stdout), "user", user, "file", name, "orders", groupDigits(orders))
}

// export writes the document, one page in memory at a time, and returns how many orders it has.
func (c *client) export(ctx context.Context, to io.Writer, user string, revision *typev1.Revision, min *minRevision, indent bool) (orders int64, err error) {
	users, err := c.users()
	if err != nil {
		return 0, err
	}
	_, wait, err := min.parse()
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriter(to)
	ask := &userv1.ExportUserRequest{UserId: user, PageSize: exportPageOrders, MinRevision: revision, WaitBudget: wait}
	for range exportPagesMax {
		page, err := call(ctx, c, "export user "+user, users.ExportUser, ask)
		if err != nil {
			return orders, err
		}
		if orders == 0 && ask.PageToken == "" {
			name, _ := json.Marshal(page.GetUserId()) // A string always encodes.
			fmt.Fprintf(w, `{"user":%s,"revision":%q,"orders":[`, name, revisionText(page.GetFreshness().GetRevision()))
		}
		for _, order := range page.GetOrders() {
			text, err := messageJSON(order)
			if err != nil {
				return orders, err
			}
			if orders > 0 {
				_ = w.WriteByte(',') // Flush tells.
			}
			if indent {
				var lines bytes.Buffer
				if err := json.Indent(&lines, text, "", "  "); err != nil {
					return orders, err
				}
				text = append([]byte{'\n'}, lines.Bytes()...)
			}
			_, _ = w.Write(text)
			orders++
		}
		if ask.PageToken = page.GetNextPageToken(); ask.PageToken == "" {
			_, _ = w.WriteString("]}\n")
			return orders, w.Flush()
		}
	}
	return orders, fmt.Errorf("export user %s: there are more than %d orders", user, exportPagesMax*exportPageOrders)
}

func (c *client) userErase() *cobra.Command {
	var (
		request requestID
		user    string
		yes     bool
	)
	cmd := &cobra.Command{
		Use:   "erase --user USER --yes",
		Short: "Erase what is personal of a user, for ever",
		Long: `Erase what is personal of a user: notes, addresses and contacts of every order so far. Their key is destroyed, so
they are gone from the log, the views and every copy of them at once. Orders, amounts and sums stay, and the log still
verifies.

Nothing brings the data back, also for an order that has not been shipped: look first with 'weir order list'. An order
that the user places later is kept under a new key.

A backup of the log and the views holds nothing that opens without the users' keys. Keep backups of the keys (the
bucket WEIR-USER-KEYS; with an embedded log it is in the data directory) apart and for a short time. A key that is
restored from one is destroyed again at the node's start, if the log that the node starts on knows of the erasure.`,
		Example: `  weir user erase --user alice --yes
  weir user erase --user alice --yes --request-id privacy-desk-1042 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "user"); err != nil {
				return err
			}
			if !yes {
				return usagef("erasing %s cannot be undone, and --yes is not given", user).then("export the user first if you must, then repeat with --yes")
			}
			users, err := c.users()
			if err != nil {
				return err
			}
			if err := request.fill(c.p); err != nil {
				return err
			}
			answer, err := call(cmd.Context(), c, "erase user "+user, users.EraseUser, &userv1.EraseUserRequest{
				RequestId: request.value, UserId: user, ConfirmUserId: user,
			})
			if err != nil {
				return request.remind(err)
			}
			if c.p.json(cmd) {
				return writeMessage(c.p.stdout, answer, "requestId", request.value)
			}
			return fields(c.p.stdout, c.p.painterFor(c.p.stdout),
				"user", answer.GetUserId(), "erased", timeText(answer.GetErasedAt()),
				"revision", revisionText(answer.GetRevision()), "request id", request.value)
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&user, "user", "", "`USER` to erase")
	cmd.Flags().BoolVar(&yes, "yes", false, "erase; without it nothing is")
	return cmd
}
