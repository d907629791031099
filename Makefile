# Each target is a line or two over public tools. Without make (Windows): see README.md.
# PYTHON=python3.12 chooses the interpreter, LAB_ARGS=--no-browser goes to `mqlab lab`.
# It keeps to what make 3.81 understands, which macOS has.
PYTHON = python3
RUN = .venv/bin/python
MQLAB = .venv/bin/mqlab

.PHONY: lab test proof demo check tables notebooks bench lock clean

lab: .venv/.ready
	$(MQLAB) lab $(LAB_ARGS)

# Two files at a time, each with brokers of its own. With AMQP_URL there is only one broker, and
# tests that check that nothing is left on it must not overlap.
test: .venv/.ready-dev
	$(RUN) -m pytest -n $(if $(AMQP_URL),0,2) --dist loadfile $(TEST_ARGS)

proof: .venv/.ready-dev
	$(MQLAB) broker run -- $(RUN) -m tests.exercise_table

demo: .venv/.ready
	$(MQLAB) demo

check: .venv/.ready-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The rows of README, start page and guide, and the links from page to page.
tables: .venv/.ready-dev
	$(RUN) -m tests.tables

notebooks: tables
	$(MQLAB) broker run -- .venv/bin/jupyter nbconvert --to notebook --execute --inplace \
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

# The stamps are written last: after an interruption all is done again, in an empty environment.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mqlab needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@echo "1/4  Creating a virtual environment in .venv (about 5 s)"
	@$(PYTHON) -m venv --clear .venv
	@echo "2/4  Installing uv, which makes step 3 faster (about 5 s)"
	@$(RUN) -m pip install -q uv || echo "     uv is not available here; pip is slower."
	@echo "3/4  Installing JupyterLab and the other packages: 100 MB (20 s to 2 minutes)"
	$(call install,-r requirements.lock)
	@echo "4/4  Installing mqlab from this folder (about 5 s)"
	$(call install,--no-deps -e .)
	@touch $@

.venv/.ready-dev: .venv/.ready requirements-dev.lock
	@rm -f .venv/.ready
	@echo "     Installing what the tests need (about 20 s)"
	$(call install,-r requirements-dev.lock)
	@touch .venv/.ready $@

# The libraries that it compares with have an environment of their own.
benchmarks/.venv/.ready: benchmarks/requirements.txt
	$(PYTHON) -m venv --clear benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install -q -r benchmarks/requirements.txt
	@touch $@

# Every 10 s a line, so that nobody takes a slow machine for a hung one.
install = @set -- $(RUN) -m pip install -q; [ ! -x .venv/bin/uv ] || \
  set -- .venv/bin/uv pip install -q --python $(RUN) --compile-bytecode; \
  (while sleep 10 >/dev/null && kill -0 $$$$; do echo "     still installing ..."; done) 2>/dev/null & \
  "$$@" $(1); status=$$?; kill $$!; exit $$status

compile = .venv/bin/uv pip compile -q --universal --python-version 3.11 --no-annotate \
  --no-emit-package mqlab --custom-compile-command "make lock" --upgrade $(1) -o $(2)
