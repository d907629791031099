# Each target is a line or two over public tools. Without make (Windows): see README.md.
# PYTHON=python3.12 chooses the interpreter, LAB_ARGS=--no-browser goes to `mqlab lab`.
# It keeps to what make 3.81 understands, which macOS has.
PYTHON = python3
RUN = .venv/bin/python

.PHONY: lab test proof demo check tables notebooks bench lock clean

lab: .venv/.ready
	$(RUN) -m mqlab lab $(LAB_ARGS)

# Two files at a time, each with brokers of its own. On the one broker of AMQP_URL one at a time:
# the tests look whether anything is left there.
test: .venv/.ready-dev
	$(RUN) -m pytest -n $(if $(AMQP_URL),0,2) --dist loadfile $(TEST_ARGS)

proof: .venv/.ready-dev
	$(RUN) -m mqlab broker run -- $(RUN) -m tests.exercise_table

demo: .venv/.ready
	$(RUN) -m mqlab demo

check: .venv/.ready-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The rows of README, start page and guide, and the links from page to page.
tables: .venv/.ready-dev
	$(RUN) -m tests.tables

notebooks: tables
	$(RUN) -m mqlab broker run -- .venv/bin/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False \
	  --KernelManager.transport_encryption=auto notebooks/*.ipynb
	.venv/bin/jupyter nbconvert --coalesce-streams --ClearMetadataPreprocessor.enabled=True \
	  --ClearMetadataPreprocessor.clear_cell_metadata=False notebooks/*.ipynb \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask="{('language_info','name'),'kernelspec'}"

bench: benchmarks/.venv/.ready
	cd benchmarks && .venv/bin/python run.py $(BENCH_ARGS)

lock: .venv/.ready
	$(call compile,requirements.txt,requirements.lock)
	$(call compile,requirements-dev.txt,requirements-dev.lock) --constraint requirements.lock

clean:
	rm -rf .venv benchmarks/.venv .lab build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last: what was interrupted is begun again, from an empty environment.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mqlab needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@$(RUN) -m pip install -q uv || echo "uv cannot be had here: pip does it, more slowly."
	$(call install,-r requirements.lock)
	$(call install,--no-deps -e .)
	@touch $@

.venv/.ready-dev: .venv/.ready requirements-dev.lock
	@rm -f .venv/.ready
	$(call install,-r requirements-dev.lock)
	@touch .venv/.ready $@

# The peers live in an environment of their own.
benchmarks/.venv/.ready: benchmarks/requirements.txt
	$(PYTHON) -m venv --clear benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install -q -r benchmarks/requirements.txt
	@touch $@

install = @echo "install $(1)"; [ -x .venv/bin/uv ] && \
  .venv/bin/uv pip install -q --python $(RUN) --compile-bytecode $(1) || $(RUN) -m pip install -q $(1)

compile = .venv/bin/uv pip compile -q --universal --python-version 3.11 --no-annotate \
  --no-emit-package mqlab --custom-compile-command "make lock" --upgrade $(1) -o $(2)
