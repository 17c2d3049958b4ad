package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/weirhq/weir/ops/flashsale"
)

// builtWeir returns the path of weir, built once.
func builtWeir(t *testing.T) string {
	t.Helper()
	builtBinary = true
	path, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAFlashSaleSellsEveryUnitOnceAlsoWhenKilled(t *testing.T) {
	weir, seed := builtWeir(t), rand.Uint64()
	var first *flashsale.Report
	for _, lanes := range []int{1, 4} {
		for _, kill := range []bool{false, true} {
			t.Run(fmt.Sprintf("lanes %d, kill %t", lanes, kill), func(t *testing.T) {
				dir := t.TempDir()
				r := live(t, nil, "demo", "flash-sale", "--weir", weir, "--dir", dir, "--units", "50", "--attempts", "2000", "--lanes", fmt.Sprint(lanes),
					fmt.Sprintf("--kill=%t", kill), "--seed", fmt.Sprint(seed), "--pay-within", "1h", "--declined", "4", "--unpaid", "6", "-o", "json").want(t, exitOK)
				got := decode[flashsale.Report](t, r.stdout)
				want := flashsale.Totals{Units: 50, Attempts: 2000, Sold: 50, Refused: map[string]int64{"OUT_OF_STOCK": 1950}, SecondRefused: map[string]int64{"CAMPAIGN_LIMIT": 50}, Paid: 45, Declined: 2, Abandoned: 3}
				if !reflect.DeepEqual(got.Totals, want) || len(got.Wrong) > 0 || got.Stock.Reserved != 5 || got.Stock.Sold != 45 || got.Audit == nil {
					t.Fatalf("seed %d: totals are %+v, want %+v; stock %+v; wrong %v", seed, got.Totals, want, got.Stock, got.Wrong)
				}
				if kill != (got.Kill != nil) || kill && got.Kill.SoldBefore < 25 {
					t.Fatalf("seed %d: killed %+v", seed, got.Kill)
				}
				if first == nil {
					first = &got
				}
				if !reflect.DeepEqual(first.Totals, got.Totals) {
					t.Fatalf("seed %d: totals are %+v, before %+v", seed, got.Totals, first.Totals)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Fatalf("%v is left in the directory (%v)", left, err)
				}
			})
		}
	}
}

func TestAFlashSaleSellsExpiredUnitsOnceMore(t *testing.T) {
	r := live(t, nil, "demo", "flash-sale", "--weir", builtWeir(t), "--dir", t.TempDir(), "--units", "20", "--attempts", "300", "--pay-within", "6s", "--declined", "10", "--unpaid", "20").want(t, exitOK)
	wantText(t, r.stdout, "20 of 20 units", "OUT_OF_STOCK 280", "14 orders in", "2 were declined, 4 never paid", "6 unpaid orders", "6 of their units, 6 of them paid", "CAMPAIGN_LIMIT 20", "0 reserved + 20 sold", "the log says the same", "Nothing was oversold")
}

func TestAFlashSaleGoesToANodeThatRuns(t *testing.T) {
	n := startDev(t, t.TempDir())
	sale := []string{"demo", "flash-sale", "--addr", n.lines.API, "--units", "10", "--attempts", "100", "--unpaid", "20"}
	wantText(t, live(t, []string{"WEIR_TOKEN=" + n.lines.Operator.Token}, sale...).want(t, exitOK).stdout, "10 of 10 units", "OUT_OF_STOCK 90", "8 orders in", "2 reserved + 8 sold", "too long to wait for", "the log was not replayed")
	// A second one on the same node is another sale.
	wantText(t, live(t, nil, append(sale, "--data", n.lines.Data)...).want(t, exitOK).stdout, "10 of 10 units", "OUT_OF_STOCK 90", "the log says the same")
	wantText(t, live(t, []string{"WEIR_TOKEN=" + n.lines.Customer.Token}, sale...).want(t, exitPermission).stderr, "PERMISSION_DENIED")
}

func TestAFlashSaleRefusesFlagsThatDoNotFit(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--units", "0"}, "units must be 1 to 1000000"},
		{[]string{"--attempts", "-1"}, "attempts must be 1 to 100000000"},
		{[]string{"--declined", "60", "--unpaid", "60"}, "0 to 100 percent together"},
		{[]string{"--connections", "100000"}, "connections must be 1 to 4096"},
		{[]string{"--pay-within", "1ms"}, "at least 1s"},
		{[]string{"--lanes", "3"}, "--lanes"},
		{[]string{"--lanes", "0"}, "--lanes"},
		{[]string{"--data", missing}, "--data is for a node that runs"},
		{[]string{"--addr", "http://127.0.0.1:1"}, "operator's token"},
		{[]string{"--addr", "127.0.0.1:1"}, "http://HOST:PORT"},
		{[]string{"--addr", "https://127.0.0.1:1"}, "operator's token"},
		{[]string{"--addr", "ftp://127.0.0.1:1"}, "http://HOST:PORT or https://HOST"},
		{[]string{"--addr", "https://"}, "http://HOST:PORT or https://HOST"},
		{[]string{"--addr", "http://127.0.0.1:1/shop", "--token", "x"}, "http://HOST:PORT"},
		{[]string{"--addr", "http://127.0.0.1:1", "--token", "x", "--kill"}, "--kill is for a node that is started here"},
		{[]string{"--addr", "http://127.0.0.1:1", "--token", "x", "--lanes", "2"}, "--lanes is for a node that is started here"},
		{[]string{"--addr", "http://127.0.0.1:1", "--data", missing}, "there is no data directory"},
	} {
		wantText(t, weir(t, nil, append([]string{"demo", "flash-sale"}, c.args...)...).want(t, exitUsage).stderr, c.want)
	}
	weir(t, nil, "demo", "flash-sale", "--addr", "http://127.0.0.1:1", "--token", "x").want(t, exitUnavailable)
	weir(t, nil, "demo", "flash-sale", "--addr", "https://127.0.0.1:1", "--token", "x").want(t, exitUnavailable)
}
