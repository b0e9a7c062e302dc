# The commands of this project. tox makes the environments that they run in, which pyproject.toml describes: .venv for
# development, on the newest Airflow, and the others in .tox. Airflow's files are in .airflow; your ~/airflow and your
# AIRFLOW_… variables are neither read nor changed.

# The Python to make the environments with; by default the first suitable one of this machine.
PYTHON ?=
# More arguments for pytest, such as ARGS="-k sensor -x", or ARGS="-n 0 --pdb" to run tests one after another.
ARGS ?=

# The supported Airflows: the tests run on each of them (make test-airflow VERSION=…), everything else on the newest.
OLDER_AIRFLOWS := 2.11.2 3.0.6 3.1.8 3.2.2
NEWEST_AIRFLOW := 3.3.2
# The next one, which may be a beta: the tests show in good time what it breaks. VERSION=next is this one.
NEXT_AIRFLOW := 3.4.0b2
# A beta's parts are pinned by name: with `--prerelease allow`, every dependency would be a beta.
LIMITS_OF_$(NEXT_AIRFLOW) := "apache-airflow-core==$(NEXT_AIRFLOW)"
# The older Airflows are tested with the packages of these days: their dependencies are developed further, they are not.
LAST_DAY_OF_2.11.2 := 2026-04-01
LAST_DAY_OF_3.0.6 := 2026-04-01
LAST_DAY_OF_3.1.8 := 2026-04-01
LAST_DAY_OF_3.2.2 := 2026-06-01
# Airflow 3.0 allows versions that it does not run with: its tasks send JSON without a content type, which FastAPI refuses
# since 0.132, and its storage opens no URL with universal-pathlib 0.3.
LIMITS_OF_3.0.6 := "fastapi<0.132" "universal-pathlib<0.3"

# The newest Airflow is tested with these Pythons too. All tests run with the one that the environments were made with,
# which is 3.11 in CI.
OTHER_PYTHONS := 3.12 3.13
# What may depend on the Python: the unit tests, except those of decoding images and of processes that write at the same
# time, which take long; both clients; and a DAG in the worker and deferred.
TESTS_OF_PYTHON := tests/contract tests/integration/test_generate.py::test_each_mapped_prompt_makes_an_image \
	$(filter-out $(patsubst %,tests/test_%.py,created_files documentation storage stored_values verification), \
	$(wildcard tests/test_*.py))

VENV := .venv
DEMO := .tox/demo
LOWEST := .tox/lowest
TOX := .tox/bootstrap/bin/python -m tox
UV := .tox/bootstrap/bin/uv
PYTEST := -m pytest -n auto --dist worksteal
# The tox environment of VERSION: dev for the newest Airflow, airflow2.11 for 2.11.2; empty if VERSION is none of these.
CHOSEN := $(if $(filter 1,$(words $(VERSION))),$(patsubst airflow$(basename $(NEWEST_AIRFLOW)),dev,$(addprefix airflow,\
	$(basename $(filter $(VERSION:next=$(NEXT_AIRFLOW)),$(OLDER_AIRFLOWS) $(NEWEST_AIRFLOW) $(NEXT_AIRFLOW))))))

$(foreach name,$(filter AIRFLOW%,$(.VARIABLES)),$(eval unexport $(name)))
# Without bytecode, each of Airflow's processes compiles everything that it imports.
unexport PYTHONDONTWRITEBYTECODE
# pip finds a company's certificate authority in the system's store; with this variable uv does so too.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

.DEFAULT_GOAL := help
.PHONY: help demo up test test-slow test-browser test-airflow test-python test-mariadb test-datasets test-lowest screenshots
.PHONY: chaos cluster-test fuzz release-check
.PHONY: bench-wait bench-dag bench-batch bench-gallery bench-start bench-doorbell check docs dist constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: env-demo ## Draw one image through Airflow, without an account (with one: QWENIMAGE_API_KEY=sk-… make demo)
	@$(DEMO)/bin/python -m scripts.demo

up: env-demo ## Start Airflow with every example already run, and the sandbox (PORT=8080 SANDBOX_PORT=8512)
	@$(DEMO)/bin/python -m scripts.up

test: env-dev ## Run the tests on the newest Airflow
	$(VENV)/bin/python $(PYTEST) -m "not slow" $(ARGS)

test-slow: env-dev ## Run the slow tests, which start a whole Airflow or build packages
	$(VENV)/bin/python -m pytest -m "slow and not browser" $(ARGS)

test-browser: env-dev ## Walk through the Airflow UI in Chromium (on Debian and Ubuntu: apt install chromium)
	$(VENV)/bin/python -m pytest -m browser $(ARGS)

screenshots: env-dev ## Take the pictures of the documentation again, in the same walk
	SCREENSHOTS=docs/images $(VENV)/bin/python -m pytest -m browser $(ARGS)

test-airflow: $(CHOSEN:%=env-%) ## Run the tests that depend on Airflow on another version (VERSION=2.11.2; without it, list the versions)
	@[ -n "$(CHOSEN)" ] || { echo "Which Airflow? VERSION is one of: $(OLDER_AIRFLOWS) $(NEWEST_AIRFLOW) $(NEXT_AIRFLOW)" >&2; exit 1; }
	$(call folder_of,$(CHOSEN))/bin/python $(PYTEST) -m "not slow and not runs_on_another_airflow" --hypothesis-profile="older Airflow" $(ARGS)

# uv looks for Pythons on PATH. pyenv has there only the chosen ones, so its folders are added.
empty :=
test-python: export PATH := $(PATH):$(subst $(empty) ,:,$(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/*/bin))
test-python: $(addprefix env-python,$(filter $(VERSION),$(OTHER_PYTHONS))) ## Run the tests that depend on Python on another one (VERSION=3.13; without it, list the versions)
	@[ -n "$(filter $(VERSION),$(OTHER_PYTHONS))" ] || { echo "Which Python? VERSION is one of: $(OTHER_PYTHONS)" >&2; exit 1; }
	.tox/python$(VERSION)/bin/python $(PYTEST) -m "not slow" --hypothesis-profile="older Airflow" $(TESTS_OF_PYTHON) $(ARGS)

test-mariadb: env-mariadb ## Run the tests that need MariaDB (on Debian and Ubuntu: apt install mariadb-server libmariadb-dev gcc pkg-config python3-dev)
	.tox/mariadb/bin/python -m pytest -m mariadb tests/books $(ARGS)

test-datasets: env-datasets ## Load the dataset of a batch with the Hugging Face library it is for
	.tox/datasets/bin/python -m pytest --noconftest tests/publish/test_loading.py $(ARGS)

test-lowest: env-lowest ## Run the tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest --quiet -k exactly tests/packaging/test_requirements.py
	$(LOWEST)/bin/python $(PYTEST) -m "not slow" $(ARGS)

chaos: env-dev ## Kill Airflow's processes at every stage and check that nothing is paid twice or lost (ARGS="--help")
	$(VENV)/bin/python -m tests.chaos $(ARGS)

cluster-test: env-dev ## Run the services of docker-compose.yaml as processes, and kill and restart them while they work
	$(VENV)/bin/python -m tests.cluster $(ARGS)

fuzz: env-dev ## Send odd responses, files, connections and XComs into everything that reads them, for ten minutes (ARGS="--help")
	@$(VENV)/bin/python -m tests.fuzz $(ARGS)

# CI kills less often, fuzzes for less time and leaves the integration tests out of the last one.
release-check: ## Run in full what CI shortens, before a release: chaos, cluster-test, fuzz, test-lowest (about 40 minutes)
	$(MAKE) chaos
	$(MAKE) cluster-test
	$(MAKE) fuzz
	$(MAKE) test-lowest

bench-wait: env-dev ## Compare ways to wait for 1,000 and 10,000 images in one event loop (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.waiting $(ARGS)

bench-dag: env-dev ## Compare ways to draw 50 images in a DAG: CPU, processes, requests (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.dags $(ARGS)

bench-batch: env-dev ## Compare the batch operator with a bare script: time, CPU, memory (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.batches $(ARGS)

bench-gallery: env-dev ## Show a run of 5,000 images and measure how much that slows Airflow's own pages (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.gallery $(ARGS)

bench-start: env-dev ## Measure what the package adds to a start of `airflow` and to parsing a DAG file (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.starts $(ARGS)

bench-doorbell: env-dev ## Measure how soon a deferred task continues if the API calls back, and if it polls (ARGS="--help")
	@$(VENV)/bin/python -m benchmarks.callbacks $(ARGS)

check: env-dev ## Check style, types and imports
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports

docs: env-dev ## Build the documentation as a site into build/docs/site; a dead link is an error
	@$(VENV)/bin/python -m scripts.docs_site

# dist/ is emptied first: a file of an earlier version would be checked and uploaded again.
dist: env-dev ## Build the source distribution and the wheel into dist/, and check them
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*
	@$(VENV)/bin/python -m scripts.wheel_contents dist/*.whl

constraints: .tox/bootstrap/bin/tox ## Choose the versions of all dependencies again
	$(call compile,$(NEWEST_AIRFLOW),--group dev --group mariadb --group tox)
	$(foreach version,$(OLDER_AIRFLOWS),$(call compile,$(version),--group test --exclude-newer $(LAST_DAY_OF_$(version))))
	$(call compile,$(NEXT_AIRFLOW),--group test)
	@echo "Choosing the versions for the tests of datasets ..."
	@UV_CUSTOM_COMPILE_COMMAND="make constraints" $(UV) pip compile --quiet --universal --python-version 3.11 \
		--no-annotate --upgrade --output-file constraints/datasets.txt --group datasets

# Not .demo: its images may have cost credits.
clean: ## Remove everything that make made, except the images
	rm -rf .venv* .tox .airflow build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Makes or updates an environment; the dependencies of pyproject.toml and the constraints may have changed.
env-%: .tox/bootstrap/bin/tox
	@[ -e $(call folder_of,$*) ] || echo "Installing the packages into $(call folder_of,$*) (about a minute) ..."
	@$(TOX) run -qq --notest -e $* || { echo "The environment $(call folder_of,$*) could not be made; the reason is above. \
	$(or $(REMEDY_$*),Check that this machine reaches its package index), then run make again." >&2; exit 1; }

# Its driver, MySQLdb, is published as source only.
REMEDY_mariadb := Install what compiles MySQLdb (on Debian and Ubuntu: apt install libmariadb-dev gcc pkg-config python3-dev)

folder_of = $(patsubst .tox/dev,$(VENV),.tox/$(1))

# tox and uv. They are installed again if the Python that they were installed with is gone.
.PHONY: $(if $(shell .tox/bootstrap/bin/python -c 'print(1)' 2>/dev/null),,.tox/bootstrap/bin/tox)
.tox/bootstrap/bin/tox: constraints/airflow-3.3.txt
	@for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3 python3.13 python); do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		echo "Installing tox with $$("$$python" --version) ..."; \
		rm -rf .tox/bootstrap; \
		"$$python" -m venv .tox/bootstrap || exit; \
		.tox/bootstrap/bin/python -m pip install -qq --disable-pip-version-check --root-user-action=ignore -c $< tox tox-uv && exit; \
		echo "tox could not be installed; the reason is above. Check that this machine reaches its package index, then run make again." >&2; \
		exit 1; \
	done; \
	echo "No Python 3.11 or later with its venv module was found$(PYTHON:%= at %)." >&2; \
	echo "Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# $(call compile,Airflow version,uv's arguments): write the constraints file of an Airflow version
define compile
	@echo "Choosing the versions for Airflow $(1) ..."
	@printf "%s\n" "apache-airflow==$(1)" $(LIMITS_OF_$(1)) | UV_CUSTOM_COMPILE_COMMAND="make constraints" \
		$(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate --extra books --extra sandbox $(2) --upgrade --output-file constraints/airflow-$(basename $(1)).txt pyproject.toml -

endef
