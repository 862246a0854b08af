# Each target is a thin call; `python -m cskt demo` needs no make. Windows: see README.md.
PYTHON ?= python3
VENV ?= .venv
# On Linux, pip's own torch is a CUDA build of several GB. Without an NVIDIA driver the CPU build is installed instead.
NVIDIA_DRIVER := $(shell command -v nvidia-smi || ls /proc/driver/nvidia/version 2>/dev/null)
ifeq ($(shell uname -s) $(NVIDIA_DRIVER),Linux )
PIP_FLAGS ?= --extra-index-url https://download.pytorch.org/whl/cpu
endif
PIP_FLAGS ?=
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
# Tools that inspect the environment are installed in another one.
AUDIT := $(VENV)-audit

.PHONY: install demo page test test-rest test-all test-faults lint bench gpu-check docs pictures dist licences sbom audit clean browser

install: $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/python -m cskt demo

# Serves a gallery of generated pedestrians on http://127.0.0.1:8000/.
page: $(VENV)/.serve
	$(BIN)/python -m cskt serve --demo demo-gallery

# Two tests at a time, each with a core and up to 3 GB; with more of both: make test TEST_PROCESSES=4
# One thread of torch per test process; with more, the processes wait for each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal
# Marks of tests that are slow or need a browser, Ray or Milvus; see pyproject.toml.
REST := slow or browser or ray or milvus

test: $(VENV)/.dev
	$(PYTEST) --hypothesis-profile fast -m 'not ($(REST))'

# What `make test` leaves out.
test-rest: $(VENV)/.dev browser
	$(PYTEST) -m '$(REST)'

test-all: test test-rest

# The faults of docs/reliability.md as often as it says, about an hour; `make test-all` tries each a few times.
test-faults: $(VENV)/.dev
	rm -f faults.jsonl
	CSKT_LONG_FAULTS=1 CSKT_FAULTS_JSON=$(CURDIR)/faults.jsonl $(BIN)/python -m pytest tests/faults tests/gallery/test_faults.py tests/gallery/test_milvus_faults.py tests/gallery/test_ray_engine.py; \
	status=$$?; $(BIN)/python tests/faults/fault_table.py faults.jsonl && exit $$status

# Tests of the page need Chromium; on Debian, root installs it.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	&& apt-get update && apt-get install --yes --no-install-recommends chromium; } \
	|| echo 'chromium is missing: tests of the page are skipped'

SCHEMA := $(BIN)/check-jsonschema --builtin-schema
lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python tools/check_english.py && $(BIN)/codespell
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff
	$(SCHEMA) vendor.compose-spec compose.yaml deploy/compose.gpu.yaml deploy/compose.milvus.yaml

# Measurements with a target, beside a baseline. Other programs on the machine distort them.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks --json bench.json

# The first thing to run on a GPU, at most 4 minutes; docs/gpu.md.
gpu-check: $(VENV)/.core
	$(BIN)/python -m benchmarks.gpu_check --json gpu-check.json

# The documentation site in build/site, without network: every warning and every broken link is an error.
# To read it: python -m http.server -d build/site
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tools/site/check_site.py build/site

# The pictures of README and docs. Needs Chromium, as `make test-rest` does.
pictures: $(VENV)/.dev browser
	$(BIN)/python tools/run_tutorials.py
	$(BIN)/python docs/make_screenshots.py
	$(BIN)/python -m cskt demo --output demo
	$(BIN)/python docs/make_screenshots.py --report demo/report.html

# Wheel and sdist of the last commit in dist/, built twice and compared, then checked with twine.
dist: $(AUDIT)/.tools
	$(AUDIT)/bin/python tools/make_dist.py

# Version and licence of every package of constraints.txt.
licences: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/python tools/licences.py

# A software bill of materials (CycloneDX) of the installed packages.
sbom: $(VENV)/.dev $(AUDIT)/.tools
	$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --output-file sbom.json

# Known vulnerabilities of the versions in constraints.txt; asks a public service.
audit: $(AUDIT)/.tools
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf $(VENV) $(AUDIT) sbom.json demo demo-gallery logs build dist .pytest_cache .mypy_cache .ruff_cache bench.json gpu-check.json faults.jsonl

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cskt needs Python 3.11 or newer; set PYTHON=")'
	@test ! -e $(VENV) || { echo '$(VENV) is there, but is no Python environment; remove it or set VENV='; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.serve: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[serve]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[docs]'
	touch $@

$(AUDIT)/.tools: constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --constraint constraints.txt build setuptools twine cyclonedx-bom pip-audit
	touch $@
