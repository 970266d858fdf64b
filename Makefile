# One command each on a fresh machine with Python ≥ 3.11 and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VR1 := $(BIN)/vr1

.PHONY: setup demo ablation test lint lab bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# The whole of Vision-R1 at laptop size: base model, data, cold start, PTST-GRPO, three benchmarks, the table.
demo: export WANDB_MODE ?= offline
demo: export HF_HUB_OFFLINE ?= 1
demo: setup
	$(VR1) run 00_base_model -f params/00_base_model/demo.yaml
	$(VR1) run 10_data_building -f params/10_data_building/demo.yaml
	$(VR1) run 20_cold_sft -f params/20_cold_sft/demo.yaml
	$(VR1) run 30_ptst_grpo -f params/30_ptst_grpo/demo.yaml
	$(VR1) run 40_benchmark -f params/40_benchmark/demo.yaml --name demo_base \
		-p model outputs/00_base_model/demo/model -p label base
	$(VR1) run 40_benchmark -f params/40_benchmark/demo.yaml --name demo_ci \
		-p model outputs/20_cold_sft/demo/model -p label CI
	$(VR1) run 40_benchmark -f params/40_benchmark/demo.yaml --name demo_vision_r1 \
		-p model outputs/30_ptst_grpo/demo/model -p label Vision-R1
	$(VR1) run 50_analysis -f params/50_analysis/demo.yaml

# Zero, CI, Long, PTST and Zero+PTST at equal token budget, three seeds each: 18 runs from the demo's models, the board.
ablation: export WANDB_MODE ?= offline
ablation: export HF_HUB_OFFLINE ?= 1
ablation: setup
	test -d outputs/00_base_model/demo/model || $(VR1) run 00_base_model -f params/00_base_model/demo.yaml
	test -f outputs/10_data_building/demo/test.jsonl || $(VR1) run 10_data_building -f params/10_data_building/demo.yaml
	test -d outputs/20_cold_sft/demo/model || $(VR1) run 20_cold_sft -f params/20_cold_sft/demo.yaml
	$(VR1) sweep params/sweeps/ablation_shapeworld.yaml --jobs 2

# Two processes of one thread each: what the eight minutes are measured on.
test: export OMP_NUM_THREADS := 1
test: export HF_HUB_OFFLINE := 1
test: export WANDB_MODE := offline
test: export WANDB_SILENT := true
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# JupyterLab on the page that says where to start; `make lab LAB_OPTIONS="--no-browser --port 9999"` on another machine.
lab: export GOMP_SPINCOUNT ?= 1000
lab: export JUPYTER_PREFER_ENV_PATH ?= 1
lab: setup
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/README.md --LabApp.app_settings_dir=notebooks/.lab $(LAB_OPTIONS)

bench: setup
	@for measure in bench/*.py; do echo "== $$measure"; $(BIN)/python $$measure || exit 1; done
