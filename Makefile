# Everything runs in environments of its own below this directory: .venv for the newest Airflow, .venv-airflow-2.11 and
# so on for older ones. Airflow's files are in .airflow; your ~/airflow and your AIRFLOW_… variables are neither read nor
# changed.

# The Python that the environments are made with. Empty: the first suitable one of this machine.
PYTHON ?=
# More arguments for pytest, such as ARGS="-k sensor -x", or ARGS="-n 0 --pdb" for tests one after another.
ARGS ?=
# Two processes for each core, up to eight: half of what a test does is waiting.
PARALLEL := -n $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((cores < 4 ? 2 * cores : 8))) --dist worksteal

# The Airflows that are supported: the tests run on each of them (make test-airflow VERSION=…), all else on the newest.
OLDER_AIRFLOWS := 2.11.2 3.0.6 3.1.8 3.2.2
NEWEST_AIRFLOW := 3.3.2
LOWEST_AIRFLOW := $(firstword $(OLDER_AIRFLOWS))
# The last day whose packages the older ones are tested with: they are no longer developed, their dependencies are.
LAST_DAY_OF_2.11.2 := 2026-04-01
LAST_DAY_OF_3.0.6 := 2026-04-01
LAST_DAY_OF_3.1.8 := 2026-04-01
LAST_DAY_OF_3.2.2 := 2026-06-01
# Airflow 3.0 lets in what it does not run with: its tasks send JSON without a content type, which FastAPI refuses since
# 0.132, and its storage opens no URL with universal-pathlib 0.3.
LIMITS_OF_3.0.6 := "fastapi<0.132" "universal-pathlib<0.3"

# $(call constraints_of,Airflow versions): constraints/airflow-2.11.txt for 2.11.2
constraints_of = $(foreach version,$(1),constraints/airflow-$(basename $(version)).txt)
# $(call environments_of,Airflow versions): .venv-airflow-2.11 for 2.11.2
environments_of = $(foreach version,$(1),$(if $(filter $(NEWEST_AIRFLOW),$(version)),.venv,.venv-airflow-$(basename $(version))))

VENV := $(call environments_of,$(NEWEST_AIRFLOW))
OLDER_VENVS := $(call environments_of,$(OLDER_AIRFLOWS))
# The environment that make test-airflow wants, if VERSION is one of the versions and no more than that.
CHOSEN_VENV := $(if $(filter 1,$(words $(VERSION))),$(call environments_of,$(filter $(OLDER_AIRFLOWS) $(NEWEST_AIRFLOW),$(VERSION))))
# What pyproject.toml promises at the lower end: its versions are chosen when the environment is made.
VENV_LOWEST := .venv-lowest

$(foreach name,$(filter AIRFLOW%,$(.VARIABLES)),$(eval unexport $(name)))
# Airflow starts a process for each task, and a test many of both: without bytecode, each compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# A company's own certificate authority is in the system's store, where pip finds it: uv should as well.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

.DEFAULT_GOAL := help
.PHONY: help demo up test test-slow test-browser test-airflow screenshots chaos cluster-test fuzz check constraints clean
.PHONY: bench-wait bench-dag bench-batch bench-gallery
.PHONY: dist test-lowest release-check

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/installed ## Draw one image through Airflow, without an account (with one: QWENIMAGE_API_KEY=sk-… make demo)
	@$(VENV)/bin/python -m scripts.demo

up: $(VENV)/installed ## Start Airflow and the sandbox, with images to look at (PORT=8080 SANDBOX_PORT=8512)
	@$(VENV)/bin/python -m scripts.up

test: $(VENV)/installed ## Run the tests on the newest Airflow
	$(VENV)/bin/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: $(VENV)/installed ## Run the slow tests: a running Airflow, built packages
	$(VENV)/bin/python -m pytest -m "slow and not browser" $(ARGS)

test-browser: $(VENV)/installed ## Walk through Airflow's UI in Chromium (on Debian and Ubuntu: apt install chromium)
	$(VENV)/bin/python -m pytest -m browser $(ARGS)

screenshots: $(VENV)/installed ## Take the pictures of the documentation anew, in the same walk
	SCREENSHOTS=docs/images $(VENV)/bin/python -m pytest -m browser $(ARGS)

test-airflow: $(CHOSEN_VENV:=/installed) ## Run the tests that depend on Airflow on another one (VERSION=2.11.2; without one, it lists them)
	@[ -n "$(CHOSEN_VENV)" ] || { echo "Which Airflow? VERSION is one of: $(OLDER_AIRFLOWS) $(NEWEST_AIRFLOW)" >&2; exit 1; }
	$(CHOSEN_VENV)/bin/python -m pytest -m "not slow and not newest_airflow_only" --hypothesis-profile="older Airflow" $(PARALLEL) $(ARGS)

test-lowest: $(VENV_LOWEST)/installed ## Run the tests with the lowest versions that pyproject.toml allows
	$(VENV_LOWEST)/bin/python -m scripts.lowest_versions
	$(VENV_LOWEST)/bin/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

chaos: $(VENV)/installed ## Kill Airflow's processes at every stage: nothing is paid twice, nothing lost (ARGS="--help")
	$(VENV)/bin/python -m tests.chaos $(ARGS)

cluster-test: $(VENV)/installed ## Kill and restart the services of docker-compose.yaml, run as processes, while they work
	$(VENV)/bin/python -m tests.cluster $(ARGS)

fuzz: $(VENV)/installed ## Send odd answers, files, connections and XComs into everything that reads them, for ten minutes (ARGS="--help")
	@$(VENV)/bin/python -m tests.fuzz $(ARGS)

# CI kills less often, fuzzes for less time and leaves the integration tests out of the last one.
release-check: ## Run what CI shortens in full, before a release: chaos, cluster-test, fuzz, test-lowest (some 40 minutes)
	$(MAKE) chaos
	$(MAKE) cluster-test
	$(MAKE) fuzz
	$(MAKE) test-lowest

bench-wait: $(VENV)/installed ## Compare the ways to wait for 1,000 and 10,000 images in one event loop (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.waiting $(ARGS)

bench-dag: $(VENV)/installed ## Compare the ways to draw 50 images in a DAG: CPU, processes, requests (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.dags $(ARGS)

bench-batch: $(VENV)/installed ## Hold the batch operator against a bare script: time, CPU, memory (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.batches $(ARGS)

bench-gallery: $(VENV)/installed ## Show a run of 5,000 images, and ask what Airflow's own pages feel of it (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.gallery $(ARGS)

check: $(VENV)/installed ## Check style, types and imports
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports

# From what an earlier version left in dist/, nothing is checked or uploaded again.
dist: $(VENV)/installed ## Build the source distribution and the wheel into dist/, and check them
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*
	@$(VENV)/bin/python -m scripts.wheel_contents dist/*.whl

constraints: $(VENV)/bin/uv ## Choose the versions of all dependencies anew
	@echo "Choosing versions (about half a minute) ..."
	@$(call compile,$(NEWEST_AIRFLOW),--group dev)
	@set -e; $(foreach version,$(OLDER_AIRFLOWS),$(call compile,$(version),--group test --exclude-newer $(LAST_DAY_OF_$(version)));)
	@echo "Written: $(call constraints_of,$(OLDER_AIRFLOWS) $(NEWEST_AIRFLOW))"

# Not .demo: images may have cost credits.
clean: ## Remove everything that make made, except the images
	rm -rf $(VENV) $(OLDER_VENVS) $(VENV_LOWEST) .airflow build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/installed: pyproject.toml $(call constraints_of,$(NEWEST_AIRFLOW))
	@$(call install,$(VENV),$(call constraints_of,$(NEWEST_AIRFLOW)),dev)

$(OLDER_VENVS:=/installed): .venv-airflow-%/installed: pyproject.toml constraints/airflow-%.txt
	@$(call install,.venv-airflow-$*,constraints/airflow-$*.txt,test)

$(VENV)/bin/uv:
	@$(call bootstrap,$(VENV),$(call constraints_of,$(NEWEST_AIRFLOW)))

# An environment knows its absolute path and that of its Python: in a copy, or without that Python, it is made anew.
is_ours = $(filter $(CURDIR),$(shell $(1)/bin/python -c '' 2>/dev/null && cat $(1)/installed 2>/dev/null))
.PHONY: $(foreach venv,$(sort $(VENV) $(CHOSEN_VENV) $(VENV_LOWEST)),$(if $(call is_ours,$(venv)),,$(venv)/installed))

# Exactly the lower bounds of pyproject.toml, and with them the newest of everything else, as of the last day of their
# Airflow. A bound that cannot be installed, or was withdrawn, fails here, with the resolver's reason.
$(VENV_LOWEST)/installed: pyproject.toml scripts/lowest_versions.py
	@$(call bootstrap,$(VENV_LOWEST),$(call constraints_of,$(LOWEST_AIRFLOW))); \
	echo "Choosing the lowest versions (about 10 seconds) ..."; \
	$(VENV_LOWEST)/bin/python -m scripts.lowest_versions --ceilings > $(VENV_LOWEST)/ceilings.txt; \
	$(VENV_LOWEST)/bin/python -m uv pip compile --quiet --python $(VENV_LOWEST)/bin/python --no-header --no-annotate \
		--extra sandbox --group test --exclude-newer $(LAST_DAY_OF_$(LOWEST_AIRFLOW)) --constraints $(VENV_LOWEST)/ceilings.txt \
		pyproject.toml > $(VENV_LOWEST)/constraints.txt \
		|| { echo "The lowest versions could not be chosen; the reason is above. Raise the bound in pyproject.toml that it names, and say why; if it names none, check that this machine reaches its package index." >&2; exit 1; }
	@$(call install,$(VENV_LOWEST),$(VENV_LOWEST)/constraints.txt,test)

# $(call bootstrap,environment,constraints): a virtual environment with nothing but uv in it
define bootstrap
set -e; \
if ! { [ "$$(cat $(1)/made-in 2>/dev/null)" = "$(CURDIR)" ] && $(1)/bin/python -m uv --version; } >/dev/null 2>&1; then \
	python=""; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3 python3.13 python); do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			python="$$candidate"; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11 or later with its venv module was found$(if $(PYTHON), at $(PYTHON))." >&2; \
		echo "Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	echo "Making the environment $(1) with $$("$$python" --version) ..."; \
	rm -rf $(1); \
	"$$python" -m venv $(1); \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -c $(2) uv; \
	printf '%s\n' "$(CURDIR)" > $(1)/made-in; \
fi
endef

# $(call install,environment,constraints,dependency group)
# With bytecode, which uv leaves out otherwise: each of Airflow's processes would compile what it imports, time after
# time where PYTHONDONTWRITEBYTECODE is set.
define install
$(call bootstrap,$(1),$(2)); \
echo "Installing Airflow and what the project needs into $(1) (about a minute the first time) ..."; \
{ $(1)/bin/python -m uv pip install --python $(1)/bin/python --constraints $(2) --build-constraints $(2) \
	--compile-bytecode --editable '.[sandbox]' --group $(3) 2>&1 || echo "FAILED"; } \
	| { failed=0; while IFS= read -r line; do \
		case "$$line" in " + "*|" - "*|" ~ "*) ;; FAILED) failed=1 ;; *) printf '  %s\n' "$$line" ;; esac; \
	done; [ $$failed = 0 ]; } \
	|| { echo "The environment $(1) could not be made; the reason is above. Check that this machine reaches its package index, then run make again." >&2; exit 1; }; \
printf '%s\n' "$(CURDIR)" > $(1)/installed
endef

# $(call compile,Airflow version,uv's arguments)
define compile
set -e; \
file=$(call constraints_of,$(1)); \
printf '%s\n' "apache-airflow==$(1)" $(LIMITS_OF_$(1)) > $(VENV)/airflow.in; \
printf '# What the tests of Airflow $(basename $(1)) run with. Written by: make constraints\n' > "$$file.new"; \
$(VENV)/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	--extra sandbox $(2) pyproject.toml $(VENV)/airflow.in >> "$$file.new"; \
mv "$$file.new" "$$file"
endef
