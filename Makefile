# `make help` lists the targets.
PYTHON ?= python3
# One of PyTorch's own builds, such as cpu, instead of the one that requirements.txt gets (docs/install.md).
TORCH ?=
TORCH_BUILDS := https://download.pytorch.org/whl
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
DEMO_TEXT := data/smalltalk.txt
DEMO_ROOT := checkpoints/demo
C_FILES := smallgpt/model/forward.c
CHROMIUM ?= chromium

.DEFAULT_GOAL := help
.PHONY: help demo serve own-bot learn test test-slow test-peers test-browser test-distributed drill format docs pictures page-pictures bench bench-time bench-scaling bench-sentiment gpu-check sentiment-full box clean

# `##@ …` begins a group; `target: … ## …` is a line of it.
##@ First steps

help: ## List the targets
	@awk -F ':.*## ' '/^##@ / { print (n++ ? "\n" : "") substr($$0, 5) }; \
		/^[a-z0-9-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_ROOT)/.trained ## Train a small model on built-in small talk (minutes), then chat with it
	@$(BIN)/python chat.py config/demo.yaml

serve: $(VENV)/.run ## Serve the model in the box: a page to chat on, and an API like OpenAI's
	@$(BIN)/python -m smallgpt serve

OWN_BOT_KEYS ?=
own-bot: $(VENV)/.gguf ## Make a bot of an invented chat export, by all steps of docs/your-own-bot.md (minutes)
	@$(BIN)/python -m tools.own_bot $(OWN_BOT_KEYS)

##@ Train and measure

# Learnt anew from BASE, not from what was learnt before: so more feedback needs another LEARN_ROOT, and a deleted
# record is forgotten. Small talk shows what the model has lost beside that.
FEEDBACK ?= feedback.jsonl
BASE ?= box
LEARN_ROOT := checkpoints/learn
LEARN_KEYS ?=
learn: $(VENV)/.run $(FEEDBACK) ## Teach BASE what people marked and corrected on the page, and compare (minutes; FEEDBACK=FILE)
	@$(BIN)/python train.py config/preference.yaml base_model=$(BASE) data_path=$(FEEDBACK) \
		checkpoint_root=$(LEARN_ROOT) resume_from=auto $(LEARN_KEYS)
	@$(BIN)/python -m smallgpt data smalltalk --dialogues 300 --seed 99 --output $(LEARN_ROOT)/talk.txt --force
	@$(BIN)/python -m smallgpt evaluate $(LEARN_ROOT) --data $(LEARN_ROOT)/talk.txt --compare $(BASE)
	@echo "chat with it: $(BIN)/python chat.py $(LEARN_ROOT)" >&2
	@echo "serve it: $(BIN)/python -m smallgpt serve $(LEARN_ROOT) --feedback $(FEEDBACK)" >&2
	@echo "when there is more feedback, learn it anew: make learn FEEDBACK=$(FEEDBACK) BASE=$(BASE)" \
		"LEARN_ROOT=$(LEARN_ROOT)2" >&2

$(FEEDBACK):
	@echo "there is no $@: run '$(BIN)/python -m smallgpt serve $(BASE) --feedback $@', and mark or correct replies" \
		"on the page; or name a file that is there: make learn FEEDBACK=..." >&2; exit 2

bench: $(VENV)/.dev ## Measure training, data and generation against the plain recipe (minutes)
	@$(BIN)/python -m benchmarks.training
	@$(BIN)/python -m benchmarks.data
	@$(BIN)/python -m benchmarks.generation

BUDGET ?= 900
bench-time: $(VENV)/.dev ## Measure the time to the same loss (BUDGET=3600: the plain recipe gets an hour)
	@$(BIN)/python -m benchmarks.time_to_loss --budget $(BUDGET) --plot docs/pictures/time_to_loss.png

bench-scaling: $(VENV)/.dev ## Measure two processes against one
	@$(BIN)/python -m benchmarks.scaling

bench-sentiment: $(VENV)/.dev ## Measure fine-tuning a classifier against the plain recipe
	@$(BIN)/python -m benchmarks.sentiment

# A PYTHON whose torch has a card needs no environment: a machine with a card may have no package index.
WITH_CARD := import sys, torch; sys.exit(not torch.cuda.is_available())
OPTIONS ?=
gpu-check: ## Check everything on an NVIDIA card (9 minutes; OPTIONS=--help); skips without one
	@if $(PYTHON) -c '$(WITH_CARD)' >/dev/null 2>&1; then python=$(PYTHON); else \
		$(MAKE) --no-print-directory $(VENV)/.run && python=$(BIN)/python; fi && \
		$$python -m benchmarks.gpu_check $(OPTIONS)

# HOTELS trains and tests the classifier; DOMAINS adds labels, CHATS adds text. As they are few, the language
# model reads the hotel reviews (without the test part) three times.
HOTELS ?= data/ChnSentiCorp_htl_all.csv
DOMAINS ?= data/reviews_other_domains.csv.xz
CHATS ?= data/train.txt
SEEDS ?= 5
FULL_ROOT := checkpoints/sentiment_full
sentiment-full: $(VENV)/.run ## Train a classifier from scratch: language model, other domains, hotels (70 minutes)
	@mkdir -p $(FULL_ROOT)
	@$(BIN)/python -m smallgpt sentiment text config/sentiment_full.yaml sentimental_data_path=$(HOTELS) \
		--also $(DOMAINS) --also $(HOTELS) --also $(HOTELS) --output $(FULL_ROOT)/reviews.txt --force
	@$(BIN)/python train.py config/sentiment_full_language.yaml data_path=[$(FULL_ROOT)/reviews.txt,$(CHATS)] $(FULL_KEYS)
	@$(BIN)/python sentimentalTrain.py config/sentiment_full_domains.yaml sentimental_data_path=$(DOMAINS) $(FULL_KEYS)
	@$(BIN)/python -m smallgpt sentiment ablation config/sentiment_full.yaml sentimental_data_path=$(HOTELS) \
		--cell mask --seeds $(SEEDS) $(FULL_KEYS)
	@echo "training the final model on nearly all reviews:" >&2
	@$(BIN)/python sentimentalTrain.py config/sentiment_full.yaml sentimental_data_path=$(HOTELS) \
		train_percent=0.97 checkpoint_root=$(FULL_ROOT)/final resume_from=auto $(FULL_KEYS)

# SmileChat (CC0), and the dialogues of KdConv and CrossWOZ (Apache-2.0), as texts. Nothing that UNSEEN has is learnt.
SMILECHAT ?= data/smilechat.txt.xz
OPEN_DIALOGUES ?= data/open_dialogues.txt.xz
UNSEEN ?= data/chitchat.txt.xz
BOX_ROOT := checkpoints/box
box: $(VENV)/.run ## Train the model in models/box anew (two hours; needs its texts, see docs/training.md)
	@test -e $(BOX_ROOT)/smilechat/train.txt || $(BIN)/python -m smallgpt data split $(SMILECHAT) --in-order \
		--validation 0 --test 0.02 --output-dir $(BOX_ROOT)/smilechat
	@test -e $(BOX_ROOT)/dialogues.txt || $(BIN)/python -m smallgpt data convert $(OPEN_DIALOGUES) \
		$(BOX_ROOT)/smilechat/train.txt --without $(UNSEEN) --output $(BOX_ROOT)/dialogues.txt
	@test -e $(BOX_ROOT)/smalltalk.txt || $(BIN)/python -m smallgpt data smalltalk --dialogues 100000 \
		--output $(BOX_ROOT)/smalltalk.txt
	@$(BIN)/python train.py config/train_box.yaml resume_from=auto $(BOX_KEYS)
	@$(BIN)/python -m smallgpt evaluate $(BOX_ROOT) --data $(BOX_ROOT)/smilechat/test.txt --smalltalk \
		--json $(BOX_ROOT)/evaluation.json --force
	@rm -rf $(BOX_ROOT)/ready
	@$(BIN)/python -m smallgpt push-ready $(BOX_ROOT) --output $(BOX_ROOT)/ready --dtype bfloat16 \
		--license apache-2.0 --about models/about_box.md --evaluation $(BOX_ROOT)/evaluation.json
	@echo "if it is better than models/box, replace that by $(BOX_ROOT)/ready" >&2

##@ Tests

test: $(VENV)/.dev ## Check format, types and import directions; run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

test-slow: $(VENV)/.dev ## Run the tests that train or measure for long
	$(BIN)/python -m pytest -m slow

test-peers: $(VENV)/.dev nginx ## Run our models in llama.cpp; serve clients of others, and behind nginx
	$(BIN)/python -m pytest -m peers

test-browser: $(VENV)/.dev chromium ## Try the page in Chromium (root gets it from Debian where it is missing)
	CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -m browser

test-distributed: $(VENV)/.dev ## Train on two machines, simulated with network namespaces (needs root)
	$(BIN)/python -m pytest -m distributed -s

drill: $(VENV)/.dev ## Kill training at 30 random moments and resume each time
	$(BIN)/python -m pytest -m drill -s

##@ Docs and upkeep

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_FILES)

docs: $(VENV)/.run ## Write docs/configuration.md and config/schema.json from smallgpt/config.py
	$(BIN)/python -m smallgpt config --markdown > docs/configuration.md
	$(BIN)/python -m smallgpt config --schema > config/schema.json

pictures: $(DEMO_ROOT)/.trained $(VENV)/.dev ## Draw the README's pictures from the demo run
	$(BIN)/python -m tools.pictures $(DEMO_ROOT) docs/pictures

CLASSIFIER ?= checkpoints/sentimental_demo
page-pictures: $(DEMO_ROOT)/.trained $(VENV)/.dev chromium ## Photograph the page for the README, with the demo run and CLASSIFIER
	CHROMIUM=$(CHROMIUM) $(BIN)/python -m tools.page_pictures $(DEMO_ROOT) $(CLASSIFIER) docs/pictures

clean: ## Delete the environment, the demo model and its text
	rm -rf $(VENV) $(DEMO_ROOT) $(DEMO_TEXT)

# On Linux the package index has PyTorch with CUDA's libraries.
ifeq ($(TORCH),cpu)
DOWNLOAD := about 0.3 GB to download, with PyTorch for CPUs only
else ifneq ($(TORCH),)
DOWNLOAD := with PyTorch's build $(TORCH)
else ifeq ($(shell uname -s),Linux)
DOWNLOAD := up to 2.9 GB to download, for NVIDIA GPUs; without one, 0.3 GB are enough: make $(or $(MAKECMDGOALS),demo) TORCH=cpu
else
DOWNLOAD := about 0.2 GB to download
endif

$(VENV)/.run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >&2 || { rm -rf $(VENV); exit 2; }
	@echo "installing requirements.txt into $(VENV), once: $(DOWNLOAD)" >&2
	@$(if $(TORCH),$(PIP) --no-deps --index-url $(TORCH_BUILDS)/$(TORCH) $$(grep '^torch==' requirements.txt) >&2)
	@$(PIP) -r requirements.txt >&2
	@touch $@

$(VENV)/.gguf: $(VENV)/.run
	@echo "installing gguf into $(VENV), once: less than 1 MB to download" >&2
	@$(PIP) $$(grep '^gguf==' requirements-dev.txt) >&2
	@touch $@

# $(call apt,packages,size): install them from Debian, as root.
apt = echo "installing Debian's $(1), once: about $(2) to download" >&2 && apt-get update -qq >&2 && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) </dev/null >&2

# No target of users. Where systemd would start it as a service at once, its tests are skipped instead.
.PHONY: nginx
nginx:
	@command -v nginx >/dev/null || test -x /usr/sbin/nginx || test "$$(id -u)" != 0 || test -d /run/systemd/system || \
		! command -v apt-get >/dev/null || { $(call apt,nginx,1 MB); }

# No target of users: a browser for tests and pictures.
.PHONY: chromium
chromium:
	@command -v $(CHROMIUM) >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		$(call apt,chromium fonts-noto-cjk,0.2 GB) && command -v $(CHROMIUM) >/dev/null; } || \
		{ echo "Chromium is needed: apt install chromium, or name one: make CHROMIUM=google-chrome ..." >&2; exit 2; }

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@echo "installing requirements-dev.txt into $(VENV), once: about 0.2 GB to download" >&2
	@$(PIP) -r requirements-dev.txt >&2
	@touch $@

$(DEMO_TEXT): | $(VENV)/.run
	@$(BIN)/python -m smallgpt data smalltalk --dialogues 60000 --seed 1 --output $@

# A demo that was interrupted goes on where it stopped.
$(DEMO_ROOT)/.trained: | $(VENV)/.run $(DEMO_TEXT)
	@$(BIN)/python train.py config/demo.yaml $$(ls -d $(DEMO_ROOT)/cpt* >/dev/null 2>&1 && echo resume_from=latest) </dev/null >&2
	@touch $@
