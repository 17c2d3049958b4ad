package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func (p *process) productCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "product",
		Short: "Put, read and list products",
		Long: `Products: what is sold and at which price. Every call needs a token with the scope operator.

A product can be ordered once it has stock: weir stock receive.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.productPut(), c.productGet(), c.productList())
	return cmd
}

func (c *client) productPut() *cobra.Command {
	var (
		request           requestID
		sku, title, price string
		tax               string
		taxIncluded       bool
	)
	cmd := &cobra.Command{
		Use:   "put --sku SKU --title TITLE --price AMOUNT",
		Short: "Create a product or change it",
		Long: `Create a product, or replace what is known of it. Orders that were placed keep their price.

Putting the same product again changes nothing. A price is an amount and an ISO 4217 code, exact to the currency's
smallest unit: "12.99 EUR", "1299 JPY", "1.250 KWD".

A tax comes on top of the price, or is a part of it with --tax-included. It is counted per line of an order, after
discounts, and rounded half up.`,
		Example: `  weir product put --sku tea --title "Sencha, 100 g" --price "12.99 EUR"
  weir product put --sku cup --title "Yunomi" --price "19.00 EUR" --tax 19% --tax-included`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "sku", "title", "price"); err != nil {
				return err
			}
			amount, err := parseAmount("--price", price)
			if err != nil {
				return err
			}
			rate, err := parsePercent("--tax", tax)
			if err != nil {
				return err
			}
			return change(cmd, c, &request, "put product "+sku, c.catalog, catalogv1connect.CatalogServiceClient.PutProduct,
				func(id string) *catalogv1.PutProductRequest {
					return &catalogv1.PutProductRequest{RequestId: id, Sku: sku, Title: title, Price: amount, TaxRateBps: rate, TaxIncluded: taxIncluded}
				}, func(answer *catalogv1.PutProductResponse) error {
					return c.p.printProduct(answer.GetProduct(), "revision", revisionText(answer.GetRevision()), "request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU`: 1 to 64 characters of A-Z a-z 0-9 _ -")
	cmd.Flags().StringVar(&title, "title", "", "`TITLE` shown to buyers, at most 200 bytes")
	cmd.Flags().StringVar(&price, "price", "", "price of one unit, an `AMOUNT` like \"12.99 EUR\"")
	cmd.Flags().StringVar(&tax, "tax", "", "rate of its tax, a `PERCENT` like 19%")
	cmd.Flags().BoolVar(&taxIncluded, "tax-included", false, "the price holds the tax already")
	return cmd
}

func (c *client) productGet() *cobra.Command {
	var (
		min minRevision
		sku string
	)
	cmd := &cobra.Command{
		Use:     "get SKU",
		Short:   "Read one product",
		Long:    `Read one product, and how fresh the answer is.`,
		Example: `  weir product get tea`,
		Args:    atMostArgs("SKU"),
		RunE: func(cmd *cobra.Command, args []string) error {
			sku, err := oneSKU(args, sku)
			if err != nil {
				return err
			}
			return read(cmd, c, &min, "get product "+sku, c.catalog, catalogv1connect.CatalogServiceClient.GetProduct,
				func(revision *typev1.Revision, wait *durationpb.Duration) *catalogv1.GetProductRequest {
					return &catalogv1.GetProductRequest{Sku: sku, MinRevision: revision, WaitBudget: wait}
				}, func(answer *catalogv1.GetProductResponse) error {
					return c.p.printProduct(answer.GetProduct(), "revision", revisionText(answer.GetProduct().GetRevision()),
						"freshness", freshnessText(answer.GetFreshness()))
				})
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU`, the same as the argument")
	return cmd
}

func (c *client) productList() *cobra.Command {
	var (
		min  minRevision
		page pageFlags
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List products by SKU",
		Long:    `List products by SKU, one page at a time. When more follow, the last line says how to ask for them.`,
		Example: `  weir product list --page-size 500`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return read(cmd, c, &min, "list products", c.catalog, catalogv1connect.CatalogServiceClient.ListProducts,
				func(revision *typev1.Revision, wait *durationpb.Duration) *catalogv1.ListProductsRequest {
					return &catalogv1.ListProductsRequest{PageSize: page.size, PageToken: page.token, MinRevision: revision, WaitBudget: wait}
				}, func(answer *catalogv1.ListProductsResponse) error {
					rows := newTable("SKU", ">PRICE", "TITLE", "CHANGED")
					for _, product := range answer.GetProducts() {
						rows.row(product.GetSku(), moneyText(product.GetPrice()), product.GetTitle(), timeText(product.GetUpdateTime()))
					}
					if err := rows.print(c.p.stdout, c.p.painterFor(c.p.stdout)); err != nil {
						return err
					}
					return c.p.printPageEnd(len(answer.GetProducts()), "product", answer.GetNextPageToken(), answer.GetFreshness())
				})
		},
	}
	min.addFlags(cmd)
	page.addFlags(cmd, "products", 1000)
	return cmd
}

func (p *process) printProduct(product *catalogv1.Product, extra ...string) error {
	return fields(p.stdout, p.painterFor(p.stdout), append([]string{
		"sku", product.GetSku(),
		"title", product.GetTitle(),
		"price", moneyText(product.GetPrice()),
		"tax", taxText(product.GetTaxRateBps(), product.GetTaxIncluded()),
		"changed", timeText(product.GetUpdateTime()),
	}, extra...)...)
}

// taxText writes a tax, nothing for none.
func taxText(rateBps int32, included bool) string {
	switch {
	case rateBps == 0:
		return ""
	case included:
		return percentText(rateBps) + ", included"
	}
	return percentText(rateBps) + " on top"
}

func (p *process) stockCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "stock",
		Short: "Receive, read and watch stock",
		Long: `Stock: how many units of a product there are, and where. Every call needs a token with the scope operator.

At every moment received = central + in transit + available + reserved + sold, and none is negative.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.stockReceive(), c.stockPreheat(), c.stockGet(), c.stockWatch())
	return cmd
}

func (c *client) stockReceive() *cobra.Command {
	var (
		request  requestID
		sku      string
		quantity int64
	)
	cmd := &cobra.Command{
		Use:   "receive --sku SKU --quantity UNITS",
		Short: "Add units of a product that came in",
		Long: `Add units of a product that came in. The product must exist: weir product put.

The same --request-id adds them once, however often it is repeated.`,
		Example: `  weir stock receive --sku tea --quantity 100 --request-id delivery-2217`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "sku", "quantity"); err != nil {
				return err
			}
			return change(cmd, c, &request, "receive stock of "+sku, c.catalog, catalogv1connect.CatalogServiceClient.ReceiveStock,
				func(id string) *catalogv1.ReceiveStockRequest {
					return &catalogv1.ReceiveStockRequest{RequestId: id, Sku: sku, Quantity: quantity}
				}, func(answer *catalogv1.ReceiveStockResponse) error {
					return fields(c.p.stdout, c.p.painterFor(c.p.stdout),
						"sku", answer.GetSku(),
						"came in", groupDigits(answer.GetQuantity()),
						"received", groupDigits(answer.GetReceived()),
						"revision", revisionText(answer.GetRevision()),
						"request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU` of the product")
	cmd.Flags().Int64Var(&quantity, "quantity", 0, "`UNITS` that came in, 1 to 1000000000")
	return cmd
}

func (c *client) stockPreheat() *cobra.Command {
	var (
		request requestID
		sku     string
		units   int64
	)
	cmd := &cobra.Command{
		Use:   "preheat --sku SKU [--units UNITS]",
		Short: "Grant units to every lane before a sale",
		Long: `Grant units of a product to every lane before a sale, the same number to each, so that its first orders find them there.

Without it, lanes are granted units when they need them, which costs the first orders in each lane some milliseconds.
Units that a lane does not sell are called back when another one needs them. The same --request-id grants once.

SKU@CAMPAIGN preheats what a campaign sells of the product.`,
		Example: `  weir stock preheat --sku tea
  weir stock preheat --sku tea@flash
  weir stock preheat --sku tea --units 250 --request-id sale-2026-11-11`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "sku"); err != nil {
				return err
			}
			return change(cmd, c, &request, "preheat stock of "+sku, c.catalog, catalogv1connect.CatalogServiceClient.PreheatStock,
				func(id string) *catalogv1.PreheatStockRequest {
					return &catalogv1.PreheatStockRequest{RequestId: id, Sku: sku, UnitsPerLane: units}
				}, func(answer *catalogv1.PreheatStockResponse) error {
					return fields(c.p.stdout, c.p.painterFor(c.p.stdout),
						"sku", answer.GetSku(),
						"each lane", groupDigits(answer.GetUnitsPerLane()),
						"granted", groupDigits(answer.GetGranted()),
						"revision", revisionText(answer.GetRevision()),
						"request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU` of the product")
	cmd.Flags().Int64Var(&units, "units", 0, "`UNITS` for each lane; 0 shares out all that there are")
	return cmd
}

func (c *client) stockGet() *cobra.Command {
	var (
		min minRevision
		sku string
	)
	cmd := &cobra.Command{
		Use:   "get SKU",
		Short: "Read where the units of a product are",
		Long: `Read the account of one product's units, and how fresh the answer is.

  received    units received and not held by campaigns: the sum of the five below
  central     not yet granted to a lane
  in transit  on their way from the centre to a lane or back
  available   free to be ordered
  reserved    held by orders that wait for payment
  sold        sold for good`,
		Example: `  weir stock get tea
  weir stock get --sku tea --min-revision 0:7 -o json`,
		Args: atMostArgs("SKU"),
		RunE: func(cmd *cobra.Command, args []string) error {
			sku, err := oneSKU(args, sku)
			if err != nil {
				return err
			}
			return read(cmd, c, &min, "get stock of "+sku, c.catalog, catalogv1connect.CatalogServiceClient.GetStock,
				func(revision *typev1.Revision, wait *durationpb.Duration) *catalogv1.GetStockRequest {
					return &catalogv1.GetStockRequest{Sku: sku, MinRevision: revision, WaitBudget: wait}
				}, func(answer *catalogv1.GetStockResponse) error {
					stock := answer.GetStock()
					return fields(c.p.stdout, c.p.painterFor(c.p.stdout),
						"sku", stock.GetSku(),
						"received", strconv.FormatInt(stock.GetReceived(), 10),
						"central", strconv.FormatInt(stock.GetCentral(), 10),
						"in transit", strconv.FormatInt(stock.GetInTransit(), 10),
						"available", strconv.FormatInt(stock.GetAvailable(), 10),
						"reserved", strconv.FormatInt(stock.GetReserved(), 10),
						"sold", strconv.FormatInt(stock.GetSold(), 10),
						"freshness", freshnessText(answer.GetFreshness()))
				})
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU`, the same as the argument")
	return cmd
}

func (c *client) stockWatch() *cobra.Command {
	var (
		min    minRevision
		sku    string
		count  int
		resume string
	)
	cmd := &cobra.Command{
		Use:   "watch SKU",
		Short: "Print where the units of a product are after each change",
		Long: `Print where the units of a product are now, then once more when that has changed, in whichever lane: one line each. The
newest state alone is printed: what changes faster than it is printed comes as one change.

With -o json each line has a resumeToken; --resume TOKEN prints nothing before the state is another one.

It ends with ctrl-c (exit code 0) or after --count lines. There is no timeout: --timeout does not apply.`,
		Example: `  weir stock watch tea
  weir stock watch tea --count 2 -o json`,
		Args: atMostArgs("SKU"),
		RunE: func(cmd *cobra.Command, args []string) error {
			sku, err := oneSKU(args, sku)
			if err != nil {
				return err
			}
			question := &catalogv1.WatchStockRequest{Sku: sku, ResumeToken: resume}
			if question.MinRevision, question.WaitBudget, err = min.parse(); err != nil {
				return err
			}
			return watch(cmd, c, count, "watch stock of "+sku, "watch again; the stock is printed as it is now, then after each change",
				c.catalog, catalogv1connect.CatalogServiceClient.WatchStock, question,
				func(answer *catalogv1.WatchStockResponse) error { return c.p.printWatchedStock(cmd, answer) })
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU`, the same as the argument")
	cmd.Flags().IntVar(&count, "count", 0, "end after this `NUMBER` of lines; 0 goes on until ctrl-c")
	cmd.Flags().StringVar(&resume, "resume", "", "resumeToken of the last line that you have: a `TOKEN`")
	return cmd
}

func (p *process) printWatchedStock(cmd *cobra.Command, answer *catalogv1.WatchStockResponse) error {
	if p.json(cmd) {
		return writeMessage(p.stdout, answer)
	}
	stock := answer.GetStock()
	_, err := fmt.Fprintf(p.stdout, "%s  received %d  central %d  in transit %d  available %d  reserved %d  sold %d  (%s)\n", printable(stock.GetSku()),
		stock.GetReceived(), stock.GetCentral(), stock.GetInTransit(), stock.GetAvailable(), stock.GetReserved(), stock.GetSold(),
		freshnessText(answer.GetFreshness()))
	return err
}

// oneSKU takes the SKU from the argument or from --sku.
func oneSKU(args []string, flag string) (string, error) {
	switch {
	case len(args) == 1 && flag != "" && args[0] != flag:
		return "", usagef("the argument says %q and --sku says %q", args[0], flag).then("give one of them")
	case len(args) == 1:
		return args[0], nil
	case flag != "":
		return flag, nil
	}
	return "", usagef("which SKU?").then("give it as the argument or with --sku")
}
