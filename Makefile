# Every target may be run again at any time. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long check format bench types api migration scenarios play parity lock
# the product and its tests start many Python processes: without the compiled files each of them compiles everything again
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin
# more arguments for the command that a target runs, as in: make demo ARGS="--seconds 20"
ARGS ?=
# the tests of a file share what they start, so they stay together; many of them wait, so a third worker fits on two cores
WORKERS ?= -n 3 --dist loadfile --no-loadscope-reorder

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# Set-up shows its progress on standard error and hands the reason why it stopped to make, which says it as the last line.
SET_UP = command -v "$(PYTHON)" >/dev/null 2>&1 \
  || { echo "Python was not found. To fix it: sudo apt-get install -y python3 python3-venv && make setup"; exit 0; }; \
  "$(PYTHON)" scripts/setup.py --for-make || test $$? = 130 || echo "a fault of its own (see above). To fix it: report those lines as an issue"

setup: ## install everything that is needed, inside this checkout
	@: $(eval STOPPED := $(shell $(SET_UP)))$(if $(STOPPED),$(error Set-up stopped: $(STOPPED)))

demo: setup ## the whole product on this machine: stack, agents, a trading master, the page
	@$(BIN)/tradecopier demo $(ARGS)

test: setup ## every test, on three workers
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: setup ## the tests that need no process of the product and no database of their own: two minutes at most
	@$(BIN)/python -m pytest $(WORKERS) -m "not processes and not own_database" $(ARGS)

test-long: setup ## thousands of new random examples for the planner (PLANNER_EXAMPLES=2000)
	@PLANNER_EXAMPLES=$${PLANNER_EXAMPLES:-2000} $(BIN)/python -m pytest tests/sql/planner/test_planner_random.py $(ARGS)

check: setup ## style, types, import rules, schema drift, advisors
	@$(BIN)/python scripts/check.py $(ARGS)

format: setup ## bring every file into the layout that check wants
	@$(BIN)/ruff check --quiet --fix-only . ; $(BIN)/ruff format . && node_modules/.bin/biome check --write .

bench: setup ## every benchmark, one after the other
	@$(BIN)/python scripts/bench_peers.py
	@for name in copy fanout burst tenants floods queue history; do $(BIN)/tradecopier bench $$name $(ARGS) || exit 1; done

types: setup api ## supabase/database.types.ts from the schema, and what `make api` writes
	@$(BIN)/python scripts/database_types.py

api: setup ## docs/api.md from the comments in the schema; the reasons of dashboard and schema from docs/errors.md
	@$(BIN)/python scripts/api_docs.py
	@$(BIN)/python scripts/reason_texts.py

migration: setup ## supabase/migrations from supabase/schemas (the reasons there from docs/errors.md)
	@$(BIN)/python scripts/reason_texts.py
	@$(BIN)/python -m agent.stack.schema

scenarios: setup ## every row of docs/scenarios.md with the tests that show it
	@$(BIN)/python scripts/scenarios.py $(ARGS)

play: setup ## every scripted scenario, one line per expectation
	@$(BIN)/tradecopier scenario tests/scenarios/*.yaml $(ARGS)

parity: setup ## what a client sees of the stack, fact by fact
	@$(BIN)/python -m agent.stack.realtime.parity

lock: setup ## every lock file again, with the newest versions that fit
	@$(BIN)/python scripts/lock.py
