# What a newcomer types. Each target installs what it needs; see tests/setup.sh.

.PHONY: help build demo test picture fuzz bench book deb dist fmt lint

# How long each fuzz target runs: seconds, or a number of inputs (30000x) that are the same each time.
FOR ?= 30
# Which RabbitMQ the tests run against: 4.0 and 4.3 come from another Debian (tests/rabbitmq.sh), without it the machine's own.
RABBITMQ ?=

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: ## Build the release binary, target/release/halfway
	cargo build --release --locked

demo: ## See it work against a real RabbitMQ, step by step
	@tests/demo.sh

test: ## Run every test, against a real RabbitMQ; with RABBITMQ=4.0 or 4.3 those of tests/it against that version
	@tests/setup.sh
ifeq ($(RABBITMQ),)
	cargo test --locked
	@tests/package.sh
	@tests/compose.sh
else
	root=$$(tests/rabbitmq.sh $(RABBITMQ)) && RABBITMQ_ROOT=$$root cargo test --locked --test it
endif

picture: ## Take the README's picture of the dashboard again, after five minutes of traffic
	@tests/setup.sh
	PICTURE_SECONDS=300 cargo test --locked --test it dashboard::picture
	cp target/dashboard/picture.png docs/dashboard.png

fuzz: ## Feed the protocol core with anything, FOR seconds (30) each target
	@tests/fuzz/run.sh $(FOR)

bench: ## Measure against RabbitMQ itself and HAProxy; see docs/performance.md
	@tests/setup.sh all
	cargo bench --locked

book: ## Build the documents as a book, target/book/index.html
	command -v mdbook >/dev/null || cargo install --locked mdbook
	mdbook build docs

deb: ## Build the Debian package, target/debian/halfway_*.deb
	command -v cargo-deb >/dev/null || cargo install --locked cargo-deb
	cargo build --release --locked
	docs/packaging/stage.sh target/release/halfway target/package
	cargo deb --no-build --strip

dist: ## Build an archive for any Linux, target/dist/halfway-*.tar.gz
	@docs/packaging/dist.sh

fmt: ## Format the code
	cargo fmt

lint: ## Check the form, the code and the dependencies
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo deny check bans licenses sources
