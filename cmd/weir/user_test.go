package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A person who is nobody else: each text is found only where this person's data are.
var (
	personTexts = []string{
		"Quixhammer-Zolthar", "77 Vrombelgasse/Stiege 9", "XJ-90417", "Plonkenburg", "Obervrelm", "quix@zolthar-mail.example",
		"+43 1 9047716", "klingel kaputt \"bitte\" klopfen, Ωmega",
	}
	personArgs = []string{
		"--recipient", personTexts[0], "--line", personTexts[1], "--postal-code", personTexts[2], "--city", personTexts[3],
		"--region", personTexts[4], "--country", "AT", "--email", personTexts[5], "--phone", personTexts[6], "--note", personTexts[7],
	}
)

// disguises returns the ways in which a text may lie somewhere: plain, hex, escaped for JSON, for Go and by \u, and base64 at each of
// the three places at which a text may begin in its groups.
func disguises(text string) [][]byte {
	quoted, _ := json.Marshal(text) // A string always encodes.
	all := [][]byte{
		[]byte(text), []byte(hex.EncodeToString([]byte(text))), []byte(strings.ToUpper(hex.EncodeToString([]byte(text)))),
		bytes.Trim(quoted, `"`),
	}
	var escaped strings.Builder
	for _, r := range text {
		escaped.WriteString(`\u00` + hex.EncodeToString([]byte{byte(r)}))
	}
	all = append(all, []byte(escaped.String()))
	for shift := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString(append(make([]byte, shift), text...))
			// What is not shared with its neighbours: no group that the text does not fill alone.
			all = append(all, []byte(encoded[(shift*8+5)/6:len(text)*8/6]))
		}
	}
	return all
}

// findPerson returns where the person's data are, in whatever disguise.
func findPerson(name string, data []byte) (found []string) {
	for _, text := range personTexts {
		for i, disguise := range disguises(text) {
			if bytes.Contains(data, disguise) {
				found = append(found, name+": "+text+" in disguise "+string(rune('0'+i)))
			}
		}
	}
	return found
}

func findPersonIn(t *testing.T, dir string) (found []string, files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		files++
		found = append(found, findPerson(path, data)...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, files
}

func TestTheSearchFindsThePersonInEveryDisguise(t *testing.T) {
	for _, text := range personTexts {
		for i, disguise := range disguises(text) {
			if len(findPerson("", slices.Concat([]byte("before"), disguise, []byte("after")))) == 0 {
				t.Errorf("%q in disguise %d is not found", text, i)
			}
		}
		for shift := range 3 {
			message := append(bytes.Repeat([]byte{'#'}, shift+6), text+"more"...)
			if len(findPerson("", []byte(base64.StdEncoding.EncodeToString(message)))) == 0 {
				t.Errorf("%q in base64 after %d bytes is not found", text, shift+6)
			}
		}
	}
}

// shown is what a read shows of the person.
func shown(t *testing.T, env []string, args ...string) int {
	t.Helper()
	return len(findPerson("", []byte(live(t, env, args...).want(t, exitOK).stdout)))
}

func TestAnErasedPersonIsInNoFileAndTheLogStillVerifies(t *testing.T) {
	dir, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup")
	n := startDev(t, dir, "--demo", "--log-level", "debug")
	alice := n.customer()
	order := place(t, alice, append([]string{"tea-sencha=2"}, personArgs...)...)
	cancelled := place(t, alice, append([]string{"last-one"}, personArgs...)...)
	cancel := decode[placed](t, live(t, alice, "order", "cancel", cancelled.Order.OrderID, "-o", "json").want(t, exitOK).stdout)
	wantText(t, live(t, alice, "order", "place", "nonesuch", "--note", personTexts[7], "--phone", personTexts[6]).want(t, exitRefused).stderr, "UNKNOWN_PRODUCT")
	wantText(t, live(t, alice, "order", "place", "tea-sencha", "--recipient", personTexts[0], "--line", personTexts[1], "--country", "UK").want(t, exitUsage).stderr, "country_code")
	if count := shown(t, alice, "order", "get", order.Order.OrderID, "--min-revision", order.revision()); count < len(personTexts) {
		t.Fatalf("the order shows %d of %d texts", count, len(personTexts))
	}
	file := filepath.Join(t.TempDir(), "alice.json")
	wantText(t, live(t, n.operator(), "user", "export", "--user", devCustomer, "--file", file, "--min-revision", cancel.revision(), "--wait", "10s").want(t, exitOK).stdout, "orders  2")
	exported, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if found := findPerson(file, exported); len(found) < len(personTexts) {
		t.Fatalf("the export shows %d of %d texts", len(found), len(personTexts))
	}
	decode[map[string]any](t, string(exported))
	wantText(t, string(exported), "OrderPlaced", "OrderCancelled")
	if log := live(t, n.env(""), "log", "cat").want(t, exitOK).stdout; len(findPerson("log cat", []byte(log))) > 0 {
		t.Errorf("the log shows %q", findPerson("log cat", []byte(log)))
	}
	check := func(when string, logged result, dirs ...string) {
		t.Helper()
		for _, dir := range dirs {
			found, files := findPersonIn(t, dir)
			if len(found) > 0 || files < 10 {
				t.Errorf("%s: in %d files of %s there is %q", when, files, dir, found)
			}
		}
		if found := findPerson("stderr", []byte(logged.stderr)); len(found) > 0 || logged.code != exitOK {
			t.Errorf("%s: the process ended with %d and logged %q:\n%s", when, logged.code, found, logged.stderr)
		}
	}
	check("while it runs", result{}, dir)
	check("before", n.stop(), dir)
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}

	n = startDev(t, dir, "--log-level", "debug")
	alice = n.customer()
	wantText(t, live(t, n.operator(), "user", "erase", "--user", devCustomer).want(t, exitUsage).stderr, "--yes")
	erase := []string{"user", "erase", "--user", devCustomer, "--yes", "--request-id", "e1", "-o", "json"}
	first := live(t, n.operator(), erase...).want(t, exitOK).stdout
	if again := live(t, n.operator(), erase...).want(t, exitOK).stdout; again != first {
		t.Errorf("erased again: %s, first %s", again, first)
	}
	gone := func() {
		t.Helper()
		for _, read := range [][]string{
			{"order", "get", order.Order.OrderID},
			{"order", "list", "-o", "json"},
			{"user", "export", "--user", devCustomer},
			{"user", "export", "--user", devCustomer, "-o", "json"},
			{"order", "place", "tea-sencha=2", "--request-id", order.RequestID, "--note", "what it was nobody knows"},
		} {
			if count := shown(t, alice, read...); count > 0 {
				t.Errorf("%q shows %d texts after the erasure", read, count)
			}
		}
		wantText(t, live(t, alice, "order", "get", order.Order.OrderID).want(t, exitOK).stdout, "personal   erased", "25.80 EUR", "tea-sencha")
	}
	gone()
	back := place(t, alice, "tea-sencha", "--note", "back again")
	if back.Order.Note != "back again" {
		t.Errorf("an order after the erasure has the note %q", back.Order.Note)
	}
	check("after", n.stop(), dir)
	live(t, []string{"WEIR_DATA=" + dir}, "log", "verify").want(t, exitOK)

	// Made again from the log alone.
	if err := os.RemoveAll(dataDir(dir).state()); err != nil {
		t.Fatal(err)
	}
	n = startDev(t, dir)
	alice = n.customer()
	live(t, alice, "order", "get", order.Order.OrderID, "--min-revision", back.revision(), "--wait", "10s").want(t, exitOK)
	gone()
	check("made again", n.stop(), dir)

	// Beside keys as they were before: the log knows better.
	keys := keysDir(t, dir)
	if err := os.RemoveAll(keys); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(keys, os.DirFS(keysDir(t, backup))); err != nil {
		t.Fatal(err)
	}
	n = startDev(t, dir)
	alice = n.customer()
	for deadline := time.Now().Add(10 * time.Second); shown(t, alice, "order", "get", order.Order.OrderID) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("a key that was restored is not destroyed again")
		}
	}
	gone()
	check("with restored keys", n.stop(), dir, backup)
}

// keysDir returns where an embedded log keeps the users' keys.
func keysDir(t *testing.T, dir string) (found string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == "KV_WEIR-USER-KEYS" {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("there are no keys in %s: %v", dir, err)
	}
	return found
}
