# Everything a contributor or an operator runs from a checkout. Needs Go, make and git, nothing else.

BIN     := bin
GOFLAGS := -trimpath
PROGRAMS := pdvault pdkeys pdaudit

.DEFAULT_GOAL := help
.PHONY: help run build test short bench bench-docs fault lint fuzz generate clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## build pdvault, pdkeys and pdaudit into bin/
	go build $(GOFLAGS) -o $(BIN)/pdvault ./api/cmd/pdvault
	go build $(GOFLAGS) -o $(BIN)/pdkeys ./keys/cmd/pdkeys
	go build $(GOFLAGS) -o $(BIN)/pdaudit ./access/cmd/pdaudit

run: build ## serve a development vault on 127.0.0.1:8080, data in data/
	$(BIN)/pdvault dev --data data --listen 127.0.0.1:8080

test: ## run every test under the race detector, with the real HashiCorp Vault
	./test/run.sh

short: ## run the tests that need no other program, without the race detector
	go test -short ./...

bench: build ## measure the real programs beside the baselines and print the tables; ARGS=-full for everything
	go run ./test/bench/cmd/bench -bin $(BIN) $(ARGS)

bench-docs: build ## the same, and write the page with tables and plots to test/bench/docs
	go run ./test/bench/cmd/bench -bin $(BIN) -docs test/bench/docs $(ARGS)

fault: ## break the real programs for TIME (default 10m) and print the table (needs root)
	go run ./test/fault/cmd/fault -kills 1000 -cuts 200 -dying 200 -flips 10000 -running-flips 1000 -losses 500 -fills 100 -hangs 100 -starves 100 -clocks 100 -sweep -seed $(or $(SEED),1) -time $(or $(TIME),10m) $(ARGS)

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt on these files'; exit 1; }
	go vet ./...
	go tool staticcheck ./...

fuzz: ## run every fuzz target for FUZZTIME (default 30s) each
	./test/fuzz.sh $(or $(FUZZTIME),30s)

generate: ## generate keys/keyspb from keys.proto (needs protoc)
	cd keys/keyspb && protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative keys.proto

clean: ## remove what build, run and the tests left in the tree
	rm -rf $(BIN) data
	go clean -testcache
