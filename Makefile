# Every target may be run again at any time. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check format bench types migration scenarios play parity lock
PYTHON ?= python3
BIN := .venv/bin
# more arguments for the command that a target runs, as in: make demo ARGS="--seconds 20"
ARGS ?=

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# Set-up shows its progress on standard error and hands the reason why it stopped to make, which says it as the last line.
SET_UP = command -v "$(PYTHON)" >/dev/null 2>&1 \
  || { echo "Python was not found. To mend it: sudo apt-get install -y python3 python3-venv && make setup"; exit 0; }; \
  "$(PYTHON)" scripts/setup.py --for-make || test $$? = 130 || echo "a fault of its own (see above). To mend it: report those lines as an issue"

setup: ## install everything that is needed, inside this checkout
	@: $(eval STOPPED := $(shell $(SET_UP)))$(if $(STOPPED),$(error Set-up stopped: $(STOPPED)))

demo: setup ## the whole product on this machine: stack, agents, a trading master, the page
	@$(BIN)/tradecopier demo $(ARGS)

test: setup ## every test
	@$(BIN)/python -m pytest $(ARGS)

test-long: setup ## thousands of new random examples for the planner (PLANNER_EXAMPLES=2000)
	@PLANNER_EXAMPLES=$${PLANNER_EXAMPLES:-2000} $(BIN)/python -m pytest tests/sql/test_planner_random.py $(ARGS)

check: setup ## style, types, import rules, schema drift, advisors
	@$(BIN)/python scripts/check.py $(ARGS)

format: setup ## bring every file into the layout that check wants
	@$(BIN)/ruff check --quiet --fix-only . ; $(BIN)/ruff format . && node_modules/.bin/biome check --write .

bench: setup ## every benchmark, one after the other
	@$(BIN)/python scripts/bench_peers.py
	@for name in copy fanout burst queue history; do $(BIN)/tradecopier bench $$name $(ARGS) || exit 1; done

types: setup ## supabase/database.types.ts from the schema
	@$(BIN)/python scripts/database_types.py

migration: setup ## supabase/migrations from supabase/schemas
	@$(BIN)/python -m agent.local.schema

scenarios: setup ## every row of docs/scenarios.md with the tests that show it
	@$(BIN)/python scripts/scenarios.py $(ARGS)

play: setup ## every scripted scenario, one line per expectation
	@$(BIN)/tradecopier scenario tests/scenarios/*.yaml $(ARGS)

parity: setup ## what a client sees of Realtime, fact by fact
	@$(BIN)/python -m agent.local.realtime.parity

lock: setup ## every lock file again, with the newest versions that fit
	@$(BIN)/python scripts/lock.py
