package bench

import (
	"bytes"
	"strings"
	"testing"
)

func TestAReportSaysWhichAimsWereMissed(t *testing.T) {
	report := Report{Machine: "2 processors"}
	report.Figures = append(report.Figures, Figure{Group: "place", Name: "Weir", PerSecond: 30_000, Runs: []float64{29_000, 30_000, 31_000}, P99Micros: 8123})
	report.check("Weir : echo", 0.61, "×", 0.55, false)
	report.check("start", 4.2, "s", 3, true)
	report.check("on disk", 512, "MiB", 0, true)
	var out bytes.Buffer
	if err := report.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"30000", "29000", "31000", "8.12ms", "0.61 ×", "≥ 0.55 ×", "met", "4.2 s", "≤ 3 s", "MISSED", "512 MiB"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Count(out.String(), "MISSED") != 1 {
		t.Errorf("one aim was missed, the report says:\n%s", out.String())
	}
}

func TestTheMedianOfAnEvenNumberIsBetweenTheMiddleTwo(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v = %v, want %v", c.values, got, c.want)
		}
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for _, change := range []func(*Options){
		func(o *Options) { o.Runs = 0 },
		func(o *Options) { o.Duration = 0 },
		func(o *Options) { o.Connections = -1 },
		func(o *Options) { o.Orders = 1 },
		func(o *Options) { o.Only = []string{"plaice"} },
	} {
		options := DefaultOptions()
		if err := options.Validate(); err != nil {
			t.Fatalf("the defaults are refused: %v", err)
		}
		change(&options)
		if err := options.Validate(); err == nil {
			t.Errorf("%+v is accepted", options)
		}
	}
}
