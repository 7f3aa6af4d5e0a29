# The commands of this project. `make help` lists them; `bench` and `test` set up what they need by themselves.

SUITE    ?=
MODEL    ?= testbed
METHODS  ?=
SCALE    ?=
OUT      ?=
DOWNLOAD ?=
ARGS     ?=
PYTHON   ?= python3
EXTRAS   ?= dev,detectors,docs,faces,fid,ray,slurm,testbed
WORKERS  ?= 4
WORK     ?= runs/testbed

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.complete
UV    := $(shell uv --version >/dev/null 2>&1 && command -v uv)

# The folder datasets/ is data: with the root on sys.path it would be taken for Hugging Face's library of that name.
export PYTHONSAFEPATH := 1
# Waiting threads spin for some microseconds, then sleep: spinning longer makes torch ten times slower on a busy machine,
# sleeping at once a quarter slower on a quiet one.
export GOMP_SPINCOUNT ?= 10000
# No hub is asked for anything unless DOWNLOAD=1.
export HF_HUB_OFFLINE := $(if $(DOWNLOAD),0,1)

.DEFAULT_GOAL := help
.PHONY: help setup bench test check testbed tables regress baseline perf docs

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it (by uv, which pip fetches where there is none; without it by pip, slowly)

# pip alone takes minutes for what uv does in half a minute, but reads settings, such as mirrors, that uv does not know.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): torch and what stands on it, some gigabytes the first time …" >&2
ifneq ($(UV),)
	@test -x $(BIN)/python || uv venv --python '>=3.11' $(VENV)
	@$(call INSTALL,$(UV) pip install --python $(BIN)/python)
else
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 3; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --quiet --constraint constraints.txt uv && \
	   $(call INSTALL,$(BIN)/uv pip install --quiet --python $(BIN)/python); } || \
	  { echo "uv could not do it; pip does, which takes longer …" >&2; \
	    $(call INSTALL,$(BIN)/python -m pip install --quiet); }
endif
	@touch $@

# facenet-pytorch asks for an older torch than it needs.
define INSTALL
$(1) --constraint constraints.txt --editable '.[$(EXTRAS)]' && $(1) --constraint constraints.txt --no-deps facenet-pytorch
endef

# Where `run` writes by itself, too.
RUN = $(or $(OUT),runs/$(notdir $(basename $(SUITE)))-$(notdir $(patsubst %/,%,$(MODEL))))

bench: ## run a suite to its board and its page: make bench SUITE=objects [MODEL= METHODS= SCALE= OUT= DOWNLOAD=1]
ifeq ($(strip $(SUITE)),)
	@echo "make bench needs a suite, such as: make bench SUITE=objects (there are: $(basename $(notdir $(wildcard suites/*.yaml))))" >&2; exit 2
else
	@$(MAKE) --no-print-directory setup
	@$(BIN)/erasure-bench run '$(SUITE)' --model '$(MODEL)' $(if $(METHODS),--methods '$(METHODS)') \
	  $(if $(SCALE),--scale '$(SCALE)') --out '$(RUN)' $(if $(DOWNLOAD),--download) $(ARGS); code=$$?; \
	case $$code in 0|4) $(BIN)/erasure-bench page '$(RUN)' --out '$(RUN)/page' || exit;; esac; exit $$code
endif

test: setup ## run the tests: make test [ARGS='--slow -k sample']
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## what CI runs: lint, types, tests
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

testbed: artwork ## train the embedded model anew under runs/testbed (npm for the artwork; hours on a CPU, and it resumes)
	@$(BIN)/python -m benchmark.testbed.build --node-modules $(WORK)/node_modules --work $(WORK) $(ARGS)
	@echo "To ship the result: replace benchmark/testbed/weights by $(WORK)/weights, then make check" >&2

testbed-data: artwork ## contact sheets of what the embedded model is trained on, under runs/testbed/sheets
	@$(BIN)/python -m benchmark.testbed.build --node-modules $(WORK)/node_modules --work $(WORK) data

.PHONY: artwork testbed-data
artwork: setup
	@command -v npm >/dev/null || { echo "the artwork is fetched with npm, which is not here; install Node.js" >&2; exit 3; }
	@mkdir -p $(WORK) && cp benchmark/testbed/package.json $(WORK)
	@npm install --prefix $(WORK) --silent --ignore-scripts --no-audit --no-fund

# Every suite's board, records and page; a suite that is done is passed over, one that was stopped goes on.
BOARDS ?= smoke objects celebrity explicit styles dogs birds flowers imagenette imagenet multi fade_adv ablation embedded/kinds

.PHONY: leaderboard
leaderboard: setup ## every suite with every method, hours: make leaderboard [MODEL= BOARDS='objects birds' METHODS= ARGS=]
	@set -e; for suite in $(BOARDS); do \
	  $(BIN)/erasure-bench run "suites/$$suite.yaml" --model '$(MODEL)' --methods '$(or $(METHODS),all)' --store runs/all/store \
	    --out "runs/all/$(notdir $(MODEL))/$$(basename $$suite)" $(ARGS) || test $$? -eq 4; \
	done
	@$(BIN)/erasure-bench board 'runs/all/$(notdir $(MODEL))' --format md

RUNS      ?=
COMMITTED = $(if $(filter testbed,$(MODEL)),testbed-3,$(notdir $(MODEL)))

.PHONY: boards
boards: setup ## committed boards and their leaderboard from committed records: make boards [MODEL= RUNS='runs/all/testbed/birds']
	@$(BIN)/python -m benchmark.tables.committed 'results/$(COMMITTED)' $(RUNS)

tables: setup ## papers' tables, claimed and measured and recomputed, into results/tables
	@$(BIN)/erasure-bench tables --out results/tables $(ARGS)

REASON ?=
NAMED  := $(notdir $(basename $(SUITE)))-$(notdir $(MODEL))
FRESH  := runs/regress/$(NAMED)

regress: setup ## run a suite anew and compare it with its committed baseline: make regress SUITE=smoke [MODEL=]
ifeq ($(strip $(SUITE)),)
	@echo "make regress needs a suite with a baseline (there are: $(basename $(notdir $(wildcard results/baselines/*.json))))" >&2; exit 2
else
	@rm -rf '$(FRESH)'
	@$(BIN)/erasure-bench regress --baseline 'results/baselines/$(NAMED).json' --out '$(FRESH)' \
	  --junit '$(FRESH).xml' --summary '$(FRESH).md' $(ARGS)
endif

baseline: setup ## run a suite anew and make it the baseline: make baseline SUITE=smoke REASON="…" [MODEL= METHODS= SCALE=]
ifeq ($(and $(strip $(SUITE)),$(strip $(REASON))),)
	@echo 'make baseline needs a suite and a reason: make baseline SUITE=smoke REASON="new embedded model"' >&2; exit 2
else
	@rm -rf '$(FRESH)'
	@$(BIN)/erasure-bench run '$(SUITE)' --model '$(MODEL)' $(if $(METHODS),--methods '$(METHODS)') \
	  $(if $(SCALE),--scale '$(SCALE)') --out '$(FRESH)' $(ARGS)
	@$(BIN)/erasure-bench baseline '$(FRESH)' --reason '$(subst ','\'',$(REASON))'
endif

docs: setup ## these pages as a site, under runs/docs: make docs [OUT=]
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs '$(or $(OUT),runs/docs)'
	@echo '$(or $(OUT),runs/docs)/index.html' >&2

.PHONY: torture
torture: setup ## kill runs until they end, compare every byte: make torture [ARGS='--kills 50 --seed 0'] (goes on where it was)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmark.torture $(ARGS)

.PHONY: walk
walk: setup ## a newcomer's hour, typed by a script in a fresh clone: make walk [ARGS='--quick | --borrow | --no-readme']
	@$(BIN)/python docs/walk.py $(ARGS)

perf: setup ## this harness beside the usual way, timed and counted, into results/perf: make perf [ARGS='--only edit_swap']
	@$(BIN)/erasure-bench perf --out results/perf $(ARGS)
