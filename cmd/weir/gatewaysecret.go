package main

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weirhq/weir/gateway/room"
)

const (
	// gatewaySecretBytes is the size of a secret that gateways share, and of the keys that are made of it.
	gatewaySecretBytes = 32
	// gatewaySecretFileBytesMax bounds the file with the secrets, and gatewaySecretsMax how many are in it.
	gatewaySecretFileBytesMax = 64 << 10
	gatewaySecretsMax         = 16
	// gatewaySecretEvery is how often the file is looked at for a change.
	gatewaySecretEvery = time.Second
	// failbackKeyUse and roomKeyUse say what a key is for: one leaks nothing of the other.
	failbackKeyUse = "weir gateway failback v1"
	roomKeyUse     = "weir gateway room v1"
	// newGatewaySecret is how a person makes one.
	newGatewaySecret = "make one: openssl rand -hex 32 > %s; chmod 600 %[1]s"
)

// gatewaySecrets are what all gateways share, the oldest first; nil for none.
type gatewaySecrets []gatewaySecret

// A gatewaySecret is used from one moment on, and is good until another one; zero moments are none.
type gatewaySecret struct {
	secret      []byte
	from, until time.Time
	line        int
}

// parseGatewaySecrets reads the lines of a file: HEX, HEX from TIME, HEX until TIME, or HEX from TIME until TIME. Empty lines and those that begin with
// # say nothing. Errors name the line, and never show a secret.
func parseGatewaySecrets(text string) (gatewaySecrets, error) {
	var all gatewaySecrets
	number := 0
	for line := range strings.Lines(text) {
		number++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		one := gatewaySecret{line: number}
		var err error
		if one.secret, err = hex.DecodeString(words[0]); err != nil || len(one.secret) != gatewaySecretBytes {
			return nil, fmt.Errorf("line %d does not begin with %d hexadecimal digits", number, 2*gatewaySecretBytes)
		}
		for rest := words[1:]; len(rest) > 0; rest = rest[2:] {
			at := map[string]*time.Time{"from": &one.from, "until": &one.until}[rest[0]]
			switch {
			case at == nil:
				return nil, fmt.Errorf("line %d: after the digits comes %q: want from TIME or until TIME", number, rest[0])
			case len(rest) == 1:
				return nil, fmt.Errorf("line %d: after %q there is no time", number, rest[0])
			case !at.IsZero():
				return nil, fmt.Errorf("line %d says %q twice", number, rest[0])
			}
			if *at, err = time.Parse(time.RFC3339, rest[1]); err != nil {
				return nil, fmt.Errorf("line %d: %s %q is no time such as 2027-03-20T10:00:00Z", number, rest[0], rest[1])
			}
		}
		for _, other := range all {
			if bytes.Equal(other.secret, one.secret) {
				return nil, fmt.Errorf("lines %d and %d have the same secret", other.line, number)
			}
		}
		all = append(all, one)
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("it has no line with %d hexadecimal digits", 2*gatewaySecretBytes)
	case len(all) > gatewaySecretsMax:
		return nil, fmt.Errorf("it has %d secrets, want at most %d", len(all), gatewaySecretsMax)
	}
	slices.SortStableFunc(all, func(a, b gatewaySecret) int { return a.from.Compare(b.from) })
	return all, all.check()
}

// check says when there would be no secret to use, or two.
func (s gatewaySecrets) check() error {
	for i, one := range s {
		switch last := i == len(s)-1; {
		case i > 0 && one.from.Equal(s[i-1].from):
			return fmt.Errorf("lines %d and %d are both used from the same time on: say in the newer one's line from when on it is", s[i-1].line, one.line)
		case !one.until.IsZero() && !one.until.After(one.from):
			return fmt.Errorf("line %d: until is not after from", one.line)
		case !one.until.IsZero() && last:
			return fmt.Errorf("line %d is the newest secret, and none is left after its until", one.line)
		case !one.until.IsZero() && one.until.Before(s[i+1].from):
			return fmt.Errorf("line %d is good until a time at which line %d is not used yet", one.line, s[i+1].line)
		}
	}
	return nil
}

// readGatewaySecrets reads --gateway-secret-file; an empty name is none.
func readGatewaySecrets(file string) (gatewaySecrets, error) {
	if file == "" {
		return nil, nil
	}
	opened, err := os.Open(file)
	if err != nil {
		return nil, usagef("--gateway-secret-file: %v", err).then(newGatewaySecret, file)
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, usagef("--gateway-secret-file: %v", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, usagef("--gateway-secret-file: others than its owner may read %s (mode %04o)", file, info.Mode().Perm()).then("chmod 600 %s, and make a new secret if somebody may have", file)
	}
	text, err := io.ReadAll(io.LimitReader(opened, gatewaySecretFileBytesMax+1))
	switch {
	case err != nil:
		return nil, usagef("--gateway-secret-file: %v", err)
	case len(text) > gatewaySecretFileBytesMax:
		return nil, usagef("--gateway-secret-file: %s has more than %d bytes", file, gatewaySecretFileBytesMax)
	}
	secrets, err := parseGatewaySecrets(string(text))
	if err != nil {
		return nil, usagef("--gateway-secret-file: %s: %v", file, err).then("correct it, or "+newGatewaySecret, file)
	}
	return secrets, nil
}

// openOrCreateGatewaySecret reads the secret in a data directory, or makes one there if there is none. The file is as --gateway-secret-file wants it.
func openOrCreateGatewaySecret(file string) (gatewaySecrets, error) {
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		secret := make([]byte, gatewaySecretBytes)
		if _, err := rand.Read(secret); err != nil {
			return nil, err
		}
		if err := writeNewSecret(file, hex.EncodeToString(secret)+"\n"); err != nil {
			return nil, err
		}
	}
	return readGatewaySecrets(file)
}

// writeNewSecret writes a file for its owner's eyes only, whole or not at all, and never over another one.
func writeNewSecret(path, text string) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // CreateTemp makes it 0600.
	if err != nil {
		return dataDir(filepath.Dir(path)).explain(err)
	}
	defer func() { _ = os.Remove(file.Name()) }() // A file that is left behind harms nobody.
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Link(file.Name(), path)
	}
	if errors.Is(err, fs.ErrExist) { // Another process was quicker.
		return nil
	}
	return dataDir(filepath.Dir(path)).explain(err)
}

// key returns the key that is made of the secret for one use.
func (s gatewaySecret) key(use string) []byte {
	key, err := hkdf.Key(sha256.New, s.secret, nil, use, gatewaySecretBytes)
	if err != nil {
		panic(fmt.Sprintf("a bug: %d bytes are too many for a key: %v", gatewaySecretBytes, err))
	}
	return key
}

// roomKeys are the keys of waiting rooms.
func (s gatewaySecrets) roomKeys() []room.Key {
	var keys []room.Key
	for _, one := range s {
		keys = append(keys, room.Key{Secret: one.key(roomKeyUse), From: one.from, Until: one.until})
	}
	return keys
}

// failbackKeys are the key that seals what is kept for later, and those that open what was sealed with another one: all, for a gateway whose clock is
// ahead may seal already with one that is not used here yet, and what was sealed once may wait for days.
func (s gatewaySecrets) failbackKeys(now time.Time) (seals []byte, others [][]byte) {
	newest := s.inUse(now)
	for i, one := range s {
		if i != newest {
			others = append(others, one.key(failbackKeyUse))
		}
	}
	return s[newest].key(failbackKeyUse), others
}

// inUse returns which secret is used now: the newest whose time has come.
func (s gatewaySecrets) inUse(now time.Time) int {
	at := len(s) - 1
	for at > 0 && now.Before(s[at].from) {
		at--
	}
	return at
}

// same reports whether two files say the same.
func (s gatewaySecrets) same(other gatewaySecrets) bool {
	return slices.EqualFunc(s, other, func(a, b gatewaySecret) bool {
		return bytes.Equal(a.secret, b.secret) && a.from.Equal(b.from) && a.until.Equal(b.until)
	})
}

// A followedSecret is the file with the secrets, whose changes are used while the gateway runs.
type followedSecret struct {
	file   string
	logger *slog.Logger
	// use uses other secrets, or says why it does not.
	use func(gatewaySecrets) error
	// used are those that are used, and inUse which of them is.
	used  gatewaySecrets
	inUse int
}

// run uses what the file says within a second after it has changed, and another of its secrets when its time has come, until ctx ends. What is wrong
// is logged once, and the secrets from before stay.
func (f *followedSecret) run(ctx context.Context) error {
	tick := time.NewTicker(gatewaySecretEvery)
	defer tick.Stop()
	for said := ""; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := f.look(ctx)
		switch {
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			f.logger.LogAttrs(ctx, slog.LevelError, "the gateways' secrets are not used: those from before stay", slog.String("file", f.file), slog.Any("error", err))
		}
	}
}

// look reads the file once.
func (f *followedSecret) look(ctx context.Context) error {
	read, err := readGatewaySecrets(f.file)
	if err != nil {
		return err
	}
	same, inUse := read.same(f.used), read.inUse(time.Now())
	if same && inUse == f.inUse {
		return nil
	}
	if err := f.use(read); err != nil {
		return err
	}
	f.used, f.inUse = read, inUse
	f.logger.LogAttrs(ctx, slog.LevelInfo, "the gateways' secrets were changed and are used", slog.String("file", f.file), slog.Int("secrets", len(read)))
	return nil
}
