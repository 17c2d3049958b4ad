package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// A Report is what one run of the benchmark measured.
type Report struct {
	// Machine says where: processors, kernel, Go.
	Machine string `json:"machine"`
	// Figures of load, in the order of measurement.
	Figures []Figure `json:"figures"`
	// Ratios and limits with what was aimed at.
	Checks []Check `json:"checks"`
	// LeftOut says what was not measured, and why.
	LeftOut []string `json:"left_out,omitempty"`
}

// A Figure is one contestant under load: medians of its runs.
type Figure struct {
	Group string `json:"group"`
	Name  string `json:"name"`
	// PerSecond are calls that were answered with 200.
	PerSecond float64 `json:"per_second"`
	// Runs are the single runs' calls per second.
	Runs []float64 `json:"runs"`
	// Latencies in microseconds.
	P50Micros float64 `json:"p50_us"`
	P99Micros float64 `json:"p99_us"`
	// CPU of one call in microseconds, of the server with everything that it needs, and of the load generator.
	ServerMicros    float64 `json:"server_cpu_us"`
	GeneratorMicros float64 `json:"generator_cpu_us"`
}

// A Check is a figure that has an aim: a ratio, a time or a size.
type Check struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Aim is what Value should be at least, or at most; 0 when it is only stated.
	Aim    float64 `json:"aim"`
	AtMost bool    `json:"at_most,omitempty"`
	// Met is true when there is no aim.
	Met bool `json:"met"`
}

// check adds a check; aim 0 only states the value.
func (r *Report) check(name string, value float64, unit string, aim float64, atMost bool) {
	met := aim == 0 || (atMost && value <= aim) || (!atMost && value >= aim)
	r.Checks = append(r.Checks, Check{Name: name, Value: value, Unit: unit, Aim: aim, AtMost: atMost, Met: met})
}

// print writes the report for people.
func (r *Report) print(out io.Writer) error {
	fmt.Fprintln(out, r.Machine)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	if len(r.Figures) > 0 {
		fmt.Fprintln(table, "\ngroup\twhat\tcalls/s\tlowest\thighest\tp50\tp99\tserver CPU\tgenerator CPU\t")
	}
	for i := range r.Figures {
		f := &r.Figures[i]
		fmt.Fprintf(table, "%s\t%s\t%.0f\t%.0f\t%.0f\t%s\t%s\t%.1f µs\t%.1f µs\t\n", f.Group, f.Name, f.PerSecond,
			slices.Min(f.Runs), slices.Max(f.Runs), micros(f.P50Micros), micros(f.P99Micros), f.ServerMicros, f.GeneratorMicros)
	}
	fmt.Fprintln(table)
	if len(r.Checks) > 0 {
		fmt.Fprintln(table, "figure\tvalue\taim\t\t")
	}
	for i := range r.Checks {
		c := &r.Checks[i]
		aim, verdict := "", ""
		if c.Aim != 0 {
			sign := "≥"
			if c.AtMost {
				sign = "≤"
			}
			aim, verdict = fmt.Sprintf("%s %s", sign, quantity(c.Aim, c.Unit)), "met"
			if !c.Met {
				verdict = "MISSED"
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t\n", c.Name, quantity(c.Value, c.Unit), aim, verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, reason := range r.LeftOut {
		fmt.Fprintln(out, "left out:", reason)
	}
	return nil
}

// printJSON writes the report for programs.
func (r *Report) printJSON(out io.Writer) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

func quantity(value float64, unit string) string {
	switch {
	case unit == "×":
		return fmt.Sprintf("%.2f ×", value)
	case math.Abs(value) >= 100:
		return fmt.Sprintf("%.0f %s", value, unit)
	default:
		return fmt.Sprintf("%.3g %s", value, unit)
	}
}

func micros(value float64) string {
	return time.Duration(value * float64(time.Microsecond)).Round(10 * time.Microsecond).String()
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
