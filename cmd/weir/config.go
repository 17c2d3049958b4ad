package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// A setting is a flag that may also come from the environment or from the configuration file: flag > WEIR_* > file >
// default. Flags that say what one call is about (--sku, --item) are not settings.
// settingMark is the annotation that makes a flag one.
const settingMark = "weir.setting"

// configSizeMax is the largest configuration file that is read, in bytes.
const configSizeMax = 1 << 20

// setting marks flags of a set as settings. REQUIRES: they exist.
func setting(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		if err := flags.SetAnnotation(name, settingMark, []string{"true"}); err != nil {
			panic(err) // A flag that is not there is a bug in the command.
		}
	}
}

func isSetting(flag *pflag.Flag) bool { return flag.Annotations[settingMark] != nil }

// envName returns the environment variable of a setting: pay-within is WEIR_PAY_WITHIN.
func envName(name string) string {
	return "WEIR_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// settingsOf collects every setting of the command tree: name to the flags that carry it.
func settingsOf(root *cobra.Command) map[string][]*pflag.Flag {
	settings := map[string][]*pflag.Flag{}
	seen := map[*pflag.Flag]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		collect := func(f *pflag.Flag) {
			if isSetting(f) && !seen[f] {
				seen[f] = true
				settings[f.Name] = append(settings[f.Name], f)
			}
		}
		c.PersistentFlags().VisitAll(collect)
		c.Flags().VisitAll(collect)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return settings
}

// configure gives cmd's settings the values that flags did not: from the environment, then from the file.
// The whole file is checked, also what is meant for other commands, so that a mistake shows at the first use.
func (p *process) configure(root, cmd *cobra.Command, path string) error {
	settings := settingsOf(root)
	fromFlag := map[string]bool{}
	cmd.Flags().Visit(func(f *pflag.Flag) { fromFlag[f.Name] = true })
	env := p.env()
	if !fromFlag["config"] && env["WEIR_CONFIG"] != "" {
		path = env["WEIR_CONFIG"]
	}
	if path != "" {
		if err := applyFile(settings, cmd, path, func(name string) bool {
			return fromFlag[name] || env[envName(name)] != ""
		}); err != nil {
			return err
		}
	}
	var bad error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value := env[envName(f.Name)]
		if bad != nil || !isSetting(f) || fromFlag[f.Name] || value == "" {
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			bad = usagef("%s is not a value for --%s: %v", envName(f.Name), f.Name, unquoteFlagError(err))
		}
	})
	if bad != nil {
		return bad
	}
	p.warnOfEnv(env, settings)
	return nil
}

// unquoteFlagError shortens pflag's error to what went wrong: the rest is said already.
func unquoteFlagError(err error) error {
	if cause := errors.Unwrap(err); cause != nil {
		return cause
	}
	return err
}

// applyFile reads the YAML file at path, refuses what it does not know, and sets what cmd has and nothing stronger gave.
func applyFile(settings map[string][]*pflag.Flag, cmd *cobra.Command, path string, stronger func(name string) bool) error {
	file, err := os.Open(path)
	if err != nil {
		return &problem{code: exitUsage, what: fmt.Sprintf("cannot read the configuration file: %v", err), cause: err, next: "check --config and WEIR_CONFIG"}
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, configSizeMax+1))
	if err != nil {
		return &problem{code: exitUsage, what: fmt.Sprintf("cannot read the configuration file: %v", err), cause: err}
	}
	if len(data) > configSizeMax {
		return usagef("%s: larger than %d bytes", path, configSizeMax)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return usagef("%s: %v", path, err)
	}
	if len(document.Content) == 0 {
		return nil // Empty, or comments only.
	}
	mapping := document.Content[0]
	if mapping.Kind != yaml.MappingNode {
		return usagef("%s:%d: want \"key: value\" lines", path, mapping.Line)
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		flags, known := settings[key.Value]
		switch {
		case !known:
			return usagef("%s:%d: unknown key %q%s", path, key.Line, key.Value, didYouMean(key.Value, names(settings))).
				then("list the keys: weir help config")
		case lines[key.Value] != 0:
			return usagef("%s:%d: key %q is there twice, first on line %d", path, key.Line, key.Value, lines[key.Value])
		case value.Kind != yaml.ScalarNode:
			return usagef("%s:%d: key %q wants one value", path, value.Line, key.Value)
		}
		lines[key.Value] = key.Line
		if err := setFromFile(flags, cmd, key.Value, value, stronger(key.Value)); err != nil {
			return usagef("%s:%d: %q is not a value for %s: %v", path, value.Line, value.Value, key.Value, unquoteFlagError(err))
		}
	}
	return nil
}

// setFromFile checks the value on every flag of that name and leaves it set on cmd's unless something stronger did.
func setFromFile(flags []*pflag.Flag, cmd *cobra.Command, name string, value *yaml.Node, overruled bool) error {
	own := cmd.Flags().Lookup(name)
	for _, flag := range flags {
		before := flag.Value.String()
		if err := flag.Value.Set(value.Value); err != nil {
			return err
		}
		if err := flag.Value.Set(before); err != nil {
			return err
		}
		if flag == own && !overruled {
			if err := cmd.Flags().Set(name, value.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

func names(settings map[string][]*pflag.Flag) []string {
	all := make([]string, 0, len(settings))
	for name := range settings {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// env returns the environment as a map; the last of a repeated variable counts, as in a shell.
func (p *process) env() map[string]string {
	env := make(map[string]string, len(p.environ))
	for _, pair := range p.environ {
		if key, value, ok := strings.Cut(pair, "="); ok {
			env[key] = value
		}
	}
	return env
}

// warnOfEnv says when a WEIR_ variable looks like a misspelt setting. It is no error: the variable may be another tool's.
func (p *process) warnOfEnv(env map[string]string, settings map[string][]*pflag.Flag) {
	known := []string{"WEIR_CONFIG"}
	for name := range settings {
		known = append(known, envName(name))
	}
	slices.Sort(known)
	unknown := []string{}
	for key := range env {
		if strings.HasPrefix(key, "WEIR_") && !slices.Contains(known, key) && nearest(key, known) != "" {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		fmt.Fprintf(p.stderr, "weir: warning: %s is no setting%s\n", key, didYouMean(key, known))
	}
}

// didYouMean returns "; did you mean …?" when a known word is near enough, else nothing.
func didYouMean(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// nearest returns the known word with the smallest edit distance to word, if that is at most a third of its length and
// at least one letter.
func nearest(word string, known []string) string {
	best, bestDistance := "", max(1, len(word)/3)+1
	for _, candidate := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// editDistance is Levenshtein's: the fewest letters to insert, delete or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
