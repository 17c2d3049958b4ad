package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/identity"
)

const defaultTokenTTL = 24 * time.Hour

func (p *process) tokenCommand() *cobra.Command {
	var (
		data, user, scope string
		ttl               time.Duration
	)
	cmd := &cobra.Command{
		Use:   "token --user USER [--scope SCOPE]",
		Short: "Make a token for a user",
		Long: `Make a bearer token with the key of a node's data directory, and print it, alone on a line. The node need not run.

The user is whom the token speaks for; the scope is what it may do:

  (none)     a customer: their own orders only
  act-as     a trusted backend: orders of any user
  operator   the catalogue, and everything else

A token is good until its time to live is over. It cannot be taken back before, so keep it short.`,
		Example: `  weir token --user alice
  weir token --user shop --scope operator --ttl 1h
  export WEIR_TOKEN=$(weir token --data ./weir-data --user alice)`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "user"); err != nil {
				return err
			}
			scopes, unknown := identity.ParseScopes(strings.ReplaceAll(scope, ",", " "))
			if len(unknown) > 0 {
				return usagef("--scope %q is unknown%s", unknown[0], didYouMean(unknown[0], []string{"act-as", "operator"})).
					then("leave it out for a customer, or give act-as or operator")
			}
			if !identity.ValidSubject(user) {
				return usagef("--user %q: a user id has 1 to 64 characters of A-Z a-z 0-9 _ -", user)
			}
			if ttl <= 0 || ttl > identity.TokenTTLMax {
				return usagef("--ttl must be more than 0 and at most %s, not %s", identity.TokenTTLMax, ttl)
			}
			key, err := openTokenKey(dataDir(data))
			if err != nil {
				return err
			}
			token, err := identity.Mint(key, user, scopes, p.now(), ttl)
			if err != nil {
				return err
			}
			if p.json(cmd) {
				return writeJSON(p.stdout, map[string]any{"token": token, "user": user, "scope": scopes.String(), "expires": p.now().Add(ttl).UTC()})
			}
			_, err = fmt.Fprintln(p.stdout, token)
			return err
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringVar(&user, "user", "", "`USER` whom the token speaks for")
	cmd.Flags().StringVar(&scope, "scope", "", "`SCOPE`: act-as or operator; none for a customer")
	cmd.Flags().DurationVar(&ttl, "ttl", defaultTokenTTL, "how long the token is good")
	return cmd
}

// openTokenKey reads the key that a node made in its data directory.
func openTokenKey(dir dataDir) (identity.SigningKey, error) {
	if _, err := os.Stat(string(dir)); errors.Is(err, fs.ErrNotExist) {
		return identity.SigningKey{}, usagef("there is no data directory %s", dir).then("start a node first ('weir dev'), or say where its data is with --data or WEIR_DATA")
	}
	key, err := identity.OpenSigningKey(string(dir))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return key, dir.explain(err)
	case err != nil:
		return key, &problem{code: exitFailure, what: err.Error(), cause: err}
	}
	return key, nil
}
