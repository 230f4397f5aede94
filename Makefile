# Forwards to scripts/dev.py, which also runs where there is no make:
#   python3 scripts/dev.py run
# Further words: make test ARGS="-k relay"
PYTHON ?= python3
ARGS ?=
VERBS := setup run test check bench faults fmt lock clean

.DEFAULT_GOAL := help
.PHONY: help $(VERBS)

help:
	@$(PYTHON) scripts/dev.py --help

$(VERBS):
	@$(PYTHON) scripts/dev.py $@ $(ARGS)
