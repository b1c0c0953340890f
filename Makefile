# `make` lists what there is. Tests and demo need Go; tests also real servers, which `make test` sees to.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Packages run two at a time: they share the servers, and wait for them more than they compute.
TEST_FLAGS ?= -race -count=1 -p 2
# One package, so that a test that hangs ends with all its goroutines' stacks.
TEST_TIMEOUT ?= 20m
# e.g. make test MODULES=. RUN=TestForwarder; a module in which no test ran fails
RUN ?= .

MODULES ?= . $(patsubst %/go.mod,%,$(wildcard examples/go.mod internal/bench/go.mod internal/pgxnewest/go.mod))
TOOLS := bin/withservers bin/report

.PHONY: help
help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.* ## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Watermill's TestReconnect has a data race of its own: it is the one test that runs without the detector.
.PHONY: test
test: deps $(TOOLS) ## run all tests on real servers, with the race detector
	@root=$$PWD; exec bin/withservers -- bash -euo pipefail -c ' \
		status=0; \
		for module in $(MODULES); do \
			(cd "$$module" && "$$0/bin/report" -skips "$$0/internal/testenv/skips.txt" -- \
				go test -json $(TEST_FLAGS) -timeout $(TEST_TIMEOUT) -run "$(RUN)" ./...) || status=1; \
		done; \
		if [ "$(RUN)" = . ]; then \
			bin/report -- go test -json -count=1 -timeout $(TEST_TIMEOUT) -run WatermillsReconnect ./broker/... || status=1; \
		fi; \
		exit $$status' "$$root"

.PHONY: test-full
test-full: export MILLRACE_TEST_FULL := 1
test-full: ## the same with all repetitions: an hour
	@$(MAKE) test TEST_TIMEOUT=60m

DURATION ?= 10m
.PHONY: soak
soak: deps $(TOOLS) ## random faults together for a while: make soak DURATION=10m
	@MILLRACE_SOAK=$(DURATION) exec bin/withservers -only rabbitmq -- go test -race -count=1 -v -timeout 0 -run TestRandomFaultsTogetherLoseNothing ./forwarder

.PHONY: demo
demo: ## an order service whose forwarder is killed while it works; DB=postgres://… BROKER=amqp://…|redis://… DEDUP=redis://…
	@cd examples && exec go run ./demo -db "$(DB)" -broker "$(BROKER)" -dedup "$(DEDUP)"

.PHONY: demo-real
demo-real: deps $(TOOLS) ## the same on PostgreSQL with RabbitMQ, then with Redis Streams
	@exec bin/withservers -only postgres,redis,rabbitmq -- bash -c 'cd examples && exec go run ./demo -real'

# Nothing else should run on the machine meanwhile. What was measured is kept beside the page that it is written into.
.PHONY: bench
bench: deps ## measure against stock Watermill and the limit, an hour; writes docs/benchmarks.md
	@cd internal/bench && go run . -full -json ../../docs/benchmarks.json && \
		go run . -doc ../../docs/benchmarks.md < ../../docs/benchmarks.json

.PHONY: bench-quick
bench-quick: deps ## the same for what has a bar, eight minutes; CASE=regexp measures less
	@cd internal/bench && go run . -quick $(if $(CASE),-case '$(CASE)')

.PHONY: bench-sweep
bench-sweep: deps ## what each setting is worth, seven minutes; writes "How to tune" of docs/benchmarks.md
	@cd internal/bench && go run . -sweep -json ../../docs/benchmarks-sweep.json && \
		go run . -doc ../../docs/benchmarks.md < ../../docs/benchmarks-sweep.json

# Six runs of each, so that benchstat can tell a difference from noise.
.PHONY: bench-compare
bench-compare: ## micro-benchmarks of this tree against an older one: OLD=ref
	@test -n "$(OLD)" || { echo "usage: make bench-compare OLD=ref" >&2; exit 2; }
	@old=$$(mktemp -d); trap 'git worktree remove --force "$$old/tree"; rm -rf "$$old"' EXIT; \
	git worktree add --quiet --detach "$$old/tree" "$(OLD)"; \
	run='go test -run ^$$ -bench . -benchmem -count 6 ./...'; \
	(cd "$$old/tree" && $$run) > "$$old/old.txt"; $$run > "$$old/new.txt"; \
	cd internal/bench && go tool benchstat "$$old/old.txt" "$$old/new.txt"

.PHONY: check
check: fmt lint test ## what a change has to pass
	@for module in $(MODULES); do (cd "$$module" && go mod tidy -diff && go build ./...); done

.PHONY: fmt
fmt: ## format the code
	@gofmt -l -w $(MODULES)

.PHONY: lint
lint: ## go vet, and golangci-lint if it is installed
	@for module in $(MODULES); do (cd "$$module" && go vet ./...); done
	@if command -v golangci-lint >/dev/null; then \
		for module in $(MODULES); do (cd "$$module" && golangci-lint run ./...); done; \
	else \
		echo "golangci-lint is not installed: see https://golangci-lint.run"; \
	fi

.PHONY: deps
deps: ## see that there are servers to test with; as root on Debian and Ubuntu, install them
	@internal/testenv/install

# Built, not `go run`: that would keep signals and exit statuses to itself.
bin/%: FORCE
	@go build -o $@ ./internal/testenv/$*

.PHONY: FORCE
FORCE:
