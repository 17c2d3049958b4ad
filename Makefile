# Weir needs Go, make, git and, for the race detector, a C compiler. Everything else is fetched by the targets that
# need it, pinned, into .bin, and for the browser test into ops/browser/node_modules; but redis-server, chromium, node and
# npm, which tests need, come from the system's packages.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# A version is part of its tool's stamp: changing it here installs the tool anew, leaving it installs nothing.
GOFUMPT_VERSION := v0.12.0
GOLANGCI_LINT_VERSION := v2.15.0
BUF_VERSION := v1.75.0
# The same as google.golang.org/protobuf and connectrpc.com/connect in go.mod: .ci/run checks that.
PROTOC_GEN_GO_VERSION := v1.36.12
PROTOC_GEN_CONNECT_GO_VERSION := v1.21.1
# The same as in gateway/conformance_test.go.
CONFORMANCE_VERSION := v1.0.7
BENCHSTAT_VERSION := v0.0.0-20260908200009-22c9c6c9d4da

BIN := $(CURDIR)/.bin
export PATH := $(BIN):$(PATH)

# RACE= runs the tests without the race detector, where there is no C compiler.
RACE ?= -race
# Time per fuzz target.
FUZZTIME ?= 10s
# Flags for the program that a target runs: make bench ARGS='--runs 5 --only place'.
ARGS ?=

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build ./weir.
	go build -trimpath -o weir ./cmd/weir

.PHONY: test
test: c-compiler redis-server chromium browser ## Run all tests, with the race detector and in random order.
	go test $(RACE) -shuffle=on -timeout 15m ./...

.PHONY: lint
lint: tool-gofumpt tool-golangci-lint tool-buf ## Check format, code and schemas (the first time builds the linters: some minutes).
	@unformatted=$$(gofumpt -l $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$\|\.connect\.go$$')); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run 'make fmt':" >&2; echo "$$unformatted" >&2; exit 1; fi
	golangci-lint run ./...
	buf lint

.PHONY: fmt
fmt: tool-gofumpt ## Format the code.
	gofumpt -w $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$\|\.connect\.go$$')

.PHONY: generate
generate: tool-buf tool-protoc-gen-go tool-protoc-gen-connect-go ## Generate Go from the schemas in proto/.
	buf generate

# What the page of the browser test is built from, and where.
PAGE := ops/browser
PAGE_SOURCES := $(addprefix $(PAGE)/,page.ts tsconfig.json buf.gen.yaml) $(shell find $(PAGE)/schemas proto/weir proto/third_party -name '*.proto')

.PHONY: browser
browser: $(PAGE)/dist/page.js ## Build the web page of the browser test.

$(PAGE)/dist/page.js: $(PAGE)/node_modules/.package-lock.json $(PAGE_SOURCES) | tool-buf
	npm --prefix $(PAGE) run --silent generate
	npm --prefix $(PAGE) run --silent check
	npm --prefix $(PAGE) run --silent bundle

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package.json $(PAGE)/package-lock.json | npm
	npm --prefix $(PAGE) ci --ignore-scripts --no-audit --no-fund
	@touch $@

.PHONY: fuzz
fuzz: ## Fuzz every fuzz target for FUZZTIME (10s), one after the other.
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' "$$package" | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package"; \
		done; \
	done

.PHONY: bench
bench: build ## Measure Weir beside its yardsticks (about twelve minutes; flags in ARGS).
	./weir bench $(ARGS)

.PHONY: gateway-bench
gateway-bench: build ## Measure the gateway in front of upstreams that are told how to behave, and of nodes, and run Connect's suite (about twenty-five minutes, in ten of which NATS is away; flags in ARGS, such as --nats-away 30s).
	./weir bench --only gateway-cost,gateway-faults,gateway-overload,gateway-goodput,gateway-edge,gateway-plans,gateway-limits,gateway-nodes,gateway-failback $(ARGS)
	WEIR_ROOM_TICKETS=10000000 go test ./gateway/room -count=1 -run BoundedMemory -v
	$(MAKE) --no-print-directory conformance

.PHONY: cluster-bench
cluster-bench: build ## Measure three nodes and three NATS servers, the hop to another node, and failovers (about twenty minutes; flags in ARGS).
	go build -o $(BIN)/nats-server github.com/nats-io/nats-server/v2
	./weir bench --only cluster,hop,failover --nats-server $(BIN)/nats-server $(ARGS)

.PHONY: chaos
chaos: build ## Torment a node and a cluster under load and check that nothing acknowledged is lost or done twice (root, two hours, more where others work; flags in ARGS).
	go build -o $(BIN)/nats-server github.com/nats-io/nats-server/v2
	go build -o $(BIN)/chaos ./ops/chaos
	$(BIN)/chaos -weir ./weir -nats-server $(BIN)/nats-server $(ARGS)

.PHONY: skew
skew: ## Run a node of the version before this one beside one of this version, on one log (the first time builds that version).
	@previous=$$(ops/previous-version); \
	if [ ! -x $(BIN)/weir-$$previous ]; then \
		source=$$(mktemp -d); trap 'rm -rf "$$source"' EXIT; \
		git archive "$$previous" | tar -x -C "$$source"; \
		go build -C "$$source" -o $(BIN)/weir-$$previous ./cmd/weir; \
	fi; \
	echo "the version before is $$previous"; \
	WEIR_PREVIOUS=$(BIN)/weir-$$previous go test ./cmd/weir -tags skew -count=1 -run TestTheVersionBeforeWorksBesideThisOne

.PHONY: conformance
conformance: tool-connectconformance tool-referenceserver ## Run Connect's whole conformance suite, directly and through the gateway (some minutes).
	go test ./gateway -count=1 -timeout 30m -run TestConnectConformance -v -conformance-full

.PHONY: tools
tools: tool-gofumpt tool-golangci-lint tool-buf tool-protoc-gen-go tool-protoc-gen-connect-go tool-connectconformance tool-referenceserver tool-benchstat ## Install every tool into .bin.

.PHONY: clean
clean: ## Remove what the targets built, and the tools.
	rm -rf weir .bin $(addprefix $(PAGE)/,node_modules generated dist)

.PHONY: c-compiler
c-compiler:
ifeq ($(RACE),-race)
	@[ "$$(go env CGO_ENABLED)" = 1 ] || { echo "the race detector needs cgo: unset CGO_ENABLED, or run 'make test RACE='" >&2; exit 1; }
	@cc=$$(go env CC); command -v "$${cc%% *}" >/dev/null || { echo "the race detector needs a C compiler, and $$cc is not here: install it (Debian: apt-get install gcc libc6-dev), or run 'make test RACE='" >&2; exit 1; }
endif

# package COMMAND PACKAGE WHY installs a package of the system when its command is missing, as root, or says what to install.
define package
@if ! command -v $(1) >/dev/null; then \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2); \
	else \
		echo "$(3), and $(1) is not here: install it (Debian: apt-get install $(2)), or run 'make $@' as root" >&2; exit 1; \
	fi; \
fi
endef

.PHONY: redis-server
redis-server:
	$(call package,redis-server,redis-server,the tests need a real Redis)

.PHONY: chromium
chromium:
	$(call package,chromium,chromium,the tests need a real browser)

.PHONY: npm
npm:
	$(call package,node,nodejs,the page of the browser test is built by Node.js 20 or later)
	$(call package,npm,npm,the page of the browser test is built with npm)
	@node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' || { echo "the page of the browser test is built by Node.js 20 or later, and node is $$(node --version): install a newer one (https://nodejs.org)" >&2; exit 1; }

# tool NAME PACKAGE VERSION installs one tool when its stamp is missing.
define tool
.PHONY: tool-$(1)
tool-$(1): $(BIN)/.$(1)-$(3)
$(BIN)/.$(1)-$(3):
	@mkdir -p $(BIN)
	GOBIN=$(BIN) go install $(2)@$(3)
	@rm -f $(BIN)/.$(1)-v* && touch $$@
endef

$(eval $(call tool,gofumpt,mvdan.cc/gofumpt,$(GOFUMPT_VERSION)))
$(eval $(call tool,golangci-lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION)))
$(eval $(call tool,buf,github.com/bufbuild/buf/cmd/buf,$(BUF_VERSION)))
$(eval $(call tool,protoc-gen-go,google.golang.org/protobuf/cmd/protoc-gen-go,$(PROTOC_GEN_GO_VERSION)))
$(eval $(call tool,protoc-gen-connect-go,connectrpc.com/connect/cmd/protoc-gen-connect-go,$(PROTOC_GEN_CONNECT_GO_VERSION)))
$(eval $(call tool,connectconformance,connectrpc.com/conformance/cmd/connectconformance,$(CONFORMANCE_VERSION)))
$(eval $(call tool,referenceserver,connectrpc.com/conformance/cmd/referenceserver,$(CONFORMANCE_VERSION)))
$(eval $(call tool,benchstat,golang.org/x/perf/cmd/benchstat,$(BENCHSTAT_VERSION)))
