package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/eventstore/embedded"
)

// The files that 'weir cluster keys' makes, beside a HOST.pem and a HOST.key for each host.
const (
	clusterSecretFile = "secret"
	clusterCAFile     = "ca.pem"
	// clusterSecretBytes is the length of a secret, in bytes before it is written in hex.
	clusterSecretBytes = 32
)

// clusterKeysResult is what 'weir cluster keys' prints with -o json.
type clusterKeysResult struct {
	Dir   string   `json:"dir"`
	Hosts []string `json:"hosts"`
	Files []string `json:"files"`
}

func (p *process) clusterKeysCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "keys HOST...",
		Short: "Make the keys of a new cluster of Weir's own servers",
		Long: `Make what the machines of a new cluster share and prove themselves with, once, into a directory of its own:

  secret             servers, and programs that connect to them, prove that they know it; it never travels
  ca.pem             the authority that signed the servers' certificates; its key is forgotten
  HOST.pem HOST.key  a certificate for each host, good for ten years, and its key
  token.key          signs and verifies tokens
  master.key         wraps the users' keys

Copy to each machine the secret, ca.pem and its own HOST.pem and HOST.key; and token.key and master.key into each node's
data directory before its first start. All but ca.pem and the HOST.pem are secret. Keep a copy of token.key and
master.key elsewhere: they are in no backup.

A HOST is a name or an address, as --peers has it, without a port. Several servers on one host share its certificate.`,
		Example: `  weir cluster keys host1 host2 host3 --out ./keys
  weir cluster keys 127.0.0.1 --out ./keys`,
		Args: needsFirst("HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := p.makeClusterKeys(dir, args)
			if err != nil {
				return err
			}
			if p.json(cmd) {
				return writeJSON(p.stdout, result)
			}
			_, err = fmt.Fprintf(p.stdout, "made in %s: %s\n", result.Dir, strings.Join(result.Files, " "))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "out", "./weir-keys", "`DIR` to make them in; it must not hold any yet")
	return cmd
}

// makeClusterKeys makes every file, or says which is there already.
func (p *process) makeClusterKeys(dir string, hosts []string) (clusterKeysResult, error) {
	result := clusterKeysResult{Dir: dir, Hosts: hosts}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	for _, host := range hosts {
		if host == "" || strings.ContainsAny(host, "/\\,") || (strings.Contains(host, ":") && net.ParseIP(host) == nil) {
			return result, usagef("%q is no host", host).then("give the name or the address, as --peers has it, without a port")
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return result, dataDir(dir).explain(err)
	}
	for _, file := range []string{clusterSecretFile, clusterCAFile, identity.SigningKeyFile, sealing.MasterKeyFile} {
		if _, err := os.Lstat(filepath.Join(dir, file)); !errors.Is(err, fs.ErrNotExist) {
			return result, usagef("there is a %s in %s already", file, dir).then("choose another directory with --out: a cluster's keys are made once")
		}
	}
	authority, err := embedded.NewAuthority(p.now())
	if err != nil {
		return result, err
	}
	write := func(file string, text []byte, mode os.FileMode) error {
		result.Files = append(result.Files, file)
		return dataDir(dir).explain(os.WriteFile(filepath.Join(dir, file), text, mode))
	}
	secret := make([]byte, clusterSecretBytes)
	if _, err := rand.Read(secret); err != nil {
		return result, err
	}
	if err := write(clusterSecretFile, []byte(hex.EncodeToString(secret)+"\n"), 0o600); err != nil {
		return result, err
	}
	if err := write(clusterCAFile, authority.PEM, 0o644); err != nil {
		return result, err
	}
	for _, host := range hosts {
		certificate, key, err := authority.Sign(host, p.now())
		if err != nil {
			return result, err
		}
		if err := errors.Join(write(host+".pem", certificate, 0o644), write(host+".key", key, 0o600)); err != nil {
			return result, err
		}
	}
	if _, err := identity.OpenOrCreateSigningKey(dir); err != nil {
		return result, err
	}
	if _, err := sealing.OpenOrCreateMasterKey(dir); err != nil {
		return result, err
	}
	result.Files = append(result.Files, identity.SigningKeyFile, sealing.MasterKeyFile)
	return result, nil
}
