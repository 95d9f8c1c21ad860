# Every target makes what it needs: `make demo` and `make test` work in a fresh clone.
# Paths are relative, so the clone may lie in a folder with spaces in its name.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV := .venv
BIN  := $(VENV)/bin
PY   := $(BIN)/python
UV   := uv>=0.13,<0.14

# The first Python that is new enough and can make a venv; `make PYTHON=/path/to/python3 …` chooses another.
CAN_RUN_US := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c '$(CAN_RUN_US)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)

PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
COVERAGE    := $(PY) -m coverage
LOCK        := $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header $(ARGS)

# The editable install, without fetching anything that is not in a lock: the build backend is the lock's own entry.
INSTALL_US = sed -n '/^setuptools==/,/[^\\]$$/p' requirements-dev.lock > $(VENV)/build.lock \
	&& $(PIP_INSTALL) --require-hashes -r $(VENV)/build.lock \
	&& $(PIP_INSTALL) --no-deps --no-build-isolation --editable .

# Real clients that the gateway is tried with, as they were last tried: `make clients`.
CLIENTS        := .clients
PYTHON_CLIENTS := openai==3.54.0 requests==2.34.2
NODE_CLIENTS   := openai@6.49.0

# Grafana's own component library and what photographs it: `make screens`.
SCREENS       := .screens
SCREENS_PARTS := @grafana/ui@13.2.2 @grafana/data@13.2.2 @fontsource/inter@5.3.0 react@19.3.1 react-dom@19.3.1 \
	esbuild@0.28.2 playwright-core@1.65.1 sharp@0.35.5

# Two other gateways, each in an environment of its own, to be measured beside ours: `make bench PEERS=all`.
PEERS_AT    := .peers
PEER_PYTHON := litellm[proxy]==1.106.2
PEER_NODE   := @portkey-ai/gateway@1.15.2

# The crash proof, at full length: a run that was stopped goes on where it was.
KILLS  := 200
ROUNDS := 50

.PHONY: help demo test check mutants fuzz clients proofs soak dashboards screens rules crash crash-random stateful bench bench-quick lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-18s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.runtime ## see the gateway at work against the simulator (ARGS=--once: run through and exit)
	@$(BIN)/wave-gateway demo $(ARGS)

test: $(VENV)/.dev ## run the tests and hold the coverage floors (ARGS: for pytest; floors are then skipped)
ifeq ($(strip $(ARGS)),)
	@$(COVERAGE) erase
	@$(COVERAGE) run -m pytest --numprocesses=3 --dist=worksteal
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) report
	@set -e; \
	hold() { \
		printf 'coverage of %-16s floor %3s %%: ' "$$1" "$$2"; \
		$(COVERAGE) report --include="$$1/*" --fail-under="$$2" --format=total \
			|| { echo "coverage of $$1 is below its floor" >&2; exit 1; }; \
	}; \
	hold gateway/rules 100; \
	hold gateway/flow 95; \
	hold gateway 90
else
	@$(PY) -m pytest $(ARGS)
endif

check: $(VENV)/.dev ## format, lint, types, floors: everything but the tests
	@$(PY) -m ruff format --check --quiet . || { echo 'make check: run $(BIN)/ruff format .' >&2; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@$(BIN)/lint-imports --no-logo

mutants: $(VENV)/.dev ## seed bugs about money, one at a time, and see a test catch each (ARGS: parts of their names)
	@$(PY) -m tests.mutants.run $(ARGS)

stateful: $(VENV)/.dev ## play the gateway against its reference model of money (STEPS=100000 SEED=…)
	@$(PY) -m tests.stateful.run --steps $(or $(STEPS),100000) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev ## say what no client should to a gateway and see that it stands (INPUTS=100000 SEED=…)
	@$(PY) -m tests.fuzz.run --inputs $(or $(INPUTS),100000) $(if $(SEED),--seed $(SEED)) $(ARGS)

clients: $(VENV)/.runtime $(CLIENTS)/.made ## run real clients against a gateway: OpenAI SDKs, requests, curl (fetches them, once)
	@$(PY) -m tests.clients.run $(CLIENTS)

proofs: $(VENV)/.dev ## prove the contract about money at full length, minutes each (ARGS=disconnects: only that one)
	@$(PY) -m tests.proofs $(ARGS)

soak: $(VENV)/.dev ## mixed load with faults for MINUTES=10 at RATE=110 visits a second: does the gateway leak?
	@$(PY) -m tests.soak.run --minutes $(or $(MINUTES),10) --rate $(or $(RATE),110) $(if $(SEED),--seed $(SEED)) $(ARGS)

dashboards: $(VENV)/.dev ## write grafana/*.json anew, after a change of what generates them
	@$(PY) -m grafana.generator

screens: $(VENV)/.dev $(SCREENS)/.made ## draw docs/images anew (needs prometheus, promtool, chromium, Node.js; 20 minutes, once)
	@$(PY) -m grafana.screens $(SCREENS)

rules: ## check the recording and alerting rules and run their unit tests; needs promtool 2
	@command -v promtool >/dev/null || { \
		echo 'make rules: there is no promtool. It comes with Prometheus 2.42 or newer:' >&2; \
		echo 'apt install prometheus, or https://prometheus.io/download' >&2; \
		exit 1; }
	@promtool check rules grafana/prometheus/*.yaml
	@promtool test rules grafana/prometheus/tests/*.yaml

crash: $(VENV)/.dev ## kill the gateway at every failpoint and compare its books with the bill (KILLS=10000, ARGS=--seed=…)
	@$(PY) -m tests.crash.run --kills $(KILLS) $(ARGS)

crash-random: $(VENV)/.dev ## the same at random moments under 50 submits at once (ROUNDS=300, ARGS=--seed=…)
	@$(PY) -m tests.crash.run --rounds $(ROUNDS) $(ARGS)

bench: $(VENV)/.dev $(if $(PEERS),$(PEERS_AT)/.made) ## measure beside nginx, write BENCH.md (PEERS=all: LiteLLM and Portkey too, fetched once)
	@$(PY) -m bench --write $(if $(PEERS),--peers $(PEERS_AT)) $(ARGS)

bench-quick: $(VENV)/.dev ## a short form of bench for everyday use, under 2 minutes
	@$(PY) -m bench --quick --rounds 3 --seconds 1 $(ARGS)

lock: $(VENV)/.made ## recompute the lock files from pyproject.toml (ARGS=--upgrade: take newer releases)
	@$(PIP_INSTALL) '$(UV)'
	@$(LOCK) pyproject.toml --output-file requirements.lock
	@$(LOCK) pyproject.toml --extra dev --extra otel --constraint requirements.lock --output-file requirements-dev.lock
	@$(LOCK) pyproject.toml --extra otel --constraint requirements.lock --output-file requirements-otel.lock
	@! grep -n '://' requirements*.lock || { echo 'make lock: a URL in a lock file' >&2; exit 1; }

clean: ## remove the venv, caches and build leftovers
	rm -rf $(VENV) $(CLIENTS) $(SCREENS) $(PEERS_AT) .crash .fuzz soak.csv build dist *.egg-info htmlcov .coverage .coverage.* \
		.pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find bench gateway tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a repeated run does nothing, a changed lock installs again, an interrupted run goes on where it stopped.

$(VENV)/.made:
	@test -n '$(PYTHON)' && "$(PYTHON)" -c '$(CAN_RUN_US)' || { \
		echo 'Wave Gateway needs Python 3.11 or newer with its venv module, and found none.' >&2; \
		echo 'On Debian and Ubuntu: apt install python3-venv. Elsewhere: make PYTHON=/path/to/python3 …' >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: requirements.lock requirements-dev.lock pyproject.toml $(VENV)/.made
	@echo 'Installing what the gateway needs into $(VENV) (once) …'
	@$(PIP_INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL_US)
	@touch $@

$(VENV)/.dev: requirements.lock requirements-dev.lock pyproject.toml $(VENV)/.made
	@echo 'Installing what the gateway and its tests need into $(VENV) (once) …'
	@$(PIP_INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL_US)
	@touch $(VENV)/.runtime $@

$(CLIENTS)/.made: Makefile $(VENV)/.made
	@echo 'Installing the clients into $(CLIENTS) (once) …'
	@$(PY) -m venv --clear $(CLIENTS)/venv
	@$(CLIENTS)/venv/bin/python -m pip install --quiet --disable-pip-version-check $(PYTHON_CLIENTS)
	@command -v npm >/dev/null && command -v node >/dev/null \
		&& npm install --prefix $(CLIENTS)/node --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --silent \
			$(NODE_CLIENTS) \
		|| echo 'make clients: there is no Node.js, or its SDK cannot be installed; it is left out.' >&2
	@touch $@

$(SCREENS)/.made: Makefile
	@echo 'Installing what draws the dashboards into $(SCREENS) (once, 500 MB) …'
	@npm install --prefix $(SCREENS)/node --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --silent \
		$(SCREENS_PARTS)
	@touch $@

$(PEERS_AT)/.made: Makefile $(VENV)/.made
	@command -v npm >/dev/null && command -v node >/dev/null || { echo 'make bench PEERS=all: needs Node.js' >&2; exit 1; }
	@echo 'Installing the peers into $(PEERS_AT) (once, 800 MB) …'
	@$(PY) -m venv --clear $(PEERS_AT)/litellm
	@$(PEERS_AT)/litellm/bin/python -m pip install --quiet --disable-pip-version-check '$(PEER_PYTHON)'
	@npm install --prefix $(PEERS_AT)/portkey --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --silent \
		$(PEER_NODE)
	@touch $@
