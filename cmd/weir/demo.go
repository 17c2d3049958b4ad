package main

import (
	"context"
	"fmt"
	"net/http"

	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// demoCatalog is what --demo stocks.
var demoCatalog = []struct {
	sku, title string
	cents      int64
	units      int64
}{
	{"tea-sencha", "Sencha, spring harvest, 100 g", 1290, 500},
	{"tea-gyokuro", "Gyokuro, shaded 21 days, 50 g", 2450, 120},
	{"tea-hojicha", "Hojicha, roasted over charcoal, 100 g", 990, 400},
	{"tea-matcha", "Matcha, ceremonial, 30 g", 2990, 80},
	{"pot-kyusu", "Kyusu, side handle, 270 ml", 5800, 40},
	{"pot-tetsubin", "Tetsubin, cast iron, 800 ml", 12900, 15},
	{"cup-yunomi", "Yunomi, ash glaze", 1850, 200},
	{"cup-chawan", "Chawan, black raku", 8900, 12},
	{"whisk-chasen", "Chasen, 100 prongs", 2200, 60},
	{"tin-chazutsu", "Chazutsu, cherry bark", 3600, 30},
	{"cloth-furoshiki", "Furoshiki, indigo, 70 cm", 2400, 75},
	{"last-one", "The last one in the world", 100, 1},
}

// stockDemo puts the demo catalogue and its stock, through the API as anyone would. Its request ids are fixed: again, it
// changes nothing.
func stockDemo(ctx context.Context, api, operator string) error {
	catalog := catalogv1connect.NewCatalogServiceClient(&http.Client{Transport: &bearer{token: operator, next: http.DefaultTransport}}, api)
	for _, product := range demoCatalog {
		if _, err := catalog.PutProduct(ctx, &catalogv1.PutProductRequest{
			RequestId: "demo-put-" + product.sku, Sku: product.sku, Title: product.title,
			Price: &typev1.Money{CurrencyCode: "EUR", Units: product.cents},
		}); err != nil {
			return fmt.Errorf("stock the demo catalogue: put %s: %w", product.sku, err)
		}
		if _, err := catalog.ReceiveStock(ctx, &catalogv1.ReceiveStockRequest{
			RequestId: "demo-stock-" + product.sku, Sku: product.sku, Quantity: product.units,
		}); err != nil {
			return fmt.Errorf("stock the demo catalogue: receive %s: %w", product.sku, err)
		}
	}
	return nil
}
