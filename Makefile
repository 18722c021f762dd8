# lockstep: the build and its manual. `make help` prints the lines below that begin with two hash signs.
# make installs nothing: ./setup.sh does.

## make                            build/lockstep, the command line tool
## make demo                       build it and let the built-in model tell a story
## make check                      fuzz-short, then all tests (ONLY=word: just the programs with that word in their name)
## make check SAN=address          the same under a sanitizer: address (with undefined), undefined, thread
## make kcheck K=op                the tests of one op's kernels: K=attn (all without K)
## make kbench K=op                the same with timings; K=tape: of whole decode steps as one kernel, on a GPU (MODELS=Qwen3-4B)
## make check-aarch64             the kernels' tests built for ARM and run by qemu, without our libraries
## make emulated-check             ranks on GPUs that fail, by name and in time, on emulated GPUs: needs none (CUDA's headers alone)
## make gpu-check                  the tests that need a GPU, with each set of kernels that is built in (ONLY="words of names")
## make gpu-sanitize               the kernels under compute-sanitizer: memcheck, racecheck, synccheck (ONLY, TOOLS="racecheck")
## make bench                      all timings, written to bench/results/ and, as a page, to build/bench/ (BENCH="-m MODEL")
## make fuzz                       fuzz each target for FUZZ_SECONDS=1200 (fuzz-short: 30)
## make soak SAN=address           the server under ten minutes of clients that leave and send garbage, beside good ones
## make lint                       the rules that a program can check
## make format                     clang-format all C files
## make bundle                     build/bundle/, a folder that runs on machines without our libraries
## make gpu-bundle                 build/gpu/, the same with the tests for GPUs: carry it with the tree, run build/gpu/check, build/gpu/sanitize
## make docs                       write docs/commands.md and docs/options.md anew from the options table
## make install                    to PREFIX=/usr/local, below DESTDIR; bindir, libdir, includedir, datadir as usual
## make uninstall                  remove what install put there (same PREFIX and DESTDIR)
## make clean                      remove build/
##
## V=1 shows commands, WERROR=1 turns warnings into errors; CC, CFLAGS and LDFLAGS are honoured.
## Where nvcc is found, GPU kernels for the chips in ARCHS="sm_80 sm_89 sm_90a sm_100a sm_120 compute_80" are built in (the
## last one is PTX, for all other chips); ARCHS=sm_90a builds faster, CUDA=0 builds none, LINEINFO=1 is for profilers.

MAKEFLAGS += --no-builtin-rules
# All cores, unless -j was given or something is removed at the same time.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS))$(filter clean,$(MAKECMDGOALS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all demo check check-aarch64 aarch64-run kcheck kbench emulated-check gpu-check gpu-sanitize gpu-bundle bench soak fuzz fuzz-short fuzz-run lint lint-build lint-tidy format docs bundle install uninstall clean help
.PHONY: FORCE need-cmocka

define newline


endef
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) '$(2)')
comma := ,

# ---- flags ----

SAN_address           := address,undefined
SAN_undefined         := undefined
SAN_address,undefined := $(SAN_address)
SAN_undefined,address := $(SAN_address)
SAN_thread            := thread
SAN_fuzz              := fuzzer-no-link,address,undefined# `make fuzz` asks for it
ifneq ($(SAN),)
SANITIZE := $(SAN_$(SAN))
$(if $(SANITIZE),,$(error SAN=$(SAN): use address, undefined, address,undefined or thread))
SAN_FLAGS := -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
SAN_FLAGS += -DLS_SANITIZER=$(firstword $(subst $(comma), ,$(SANITIZE)))
SAN_LINK := $(subst fuzzer-no-link,fuzzer,$(SAN_FLAGS))
# Sanitizers of this age fail at random where the kernel moves mappings further than they expect.
NO_ASLR := $(shell setarch -R true 2>/dev/null && echo setarch -R)
endif
BUILD ?= build$(if $(SAN),/san-$(firstword $(subst $(comma), ,$(SANITIZE))))

ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS ?= -O2 -g
# The toolkit: nvcc from CUDA_HOME, the PATH or the usual place. Without it, or with CUDA=0, the binary knows CPUs only.
NVCC := $(if $(filter 0,$(CUDA)),,$(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc)) $(shell command -v nvcc 2>/dev/null) \
	$(wildcard /usr/local/cuda/bin/nvcc)))
ARCHS ?= sm_80 sm_89 sm_90a sm_100a sm_120 compute_80
PKGS := jansson libpcre2-8 libutf8proc libcurl libcrypto libssl libedit libevent libevent_openssl hwloc
WARN := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wno-format-truncation
WARN += $(if $(findstring clang,$(CC)),-Wno-unknown-warning-option) $(if $(filter 1,$(WERROR)),-Werror)
# After CFLAGS, because results are the same bits on every path only while the compiler leaves the sums alone.
EXACT := -ffp-contract=off -fno-fast-math -fno-math-errno
# Device code is the same whatever the build of the rest: one folder for all of them.
KERN_BUILD := build/kern
CUDA_FLAGS := $(if $(NVCC),-DLS_CUDA -isystem $(dir $(NVCC))../include -I$(KERN_BUILD))
FLAGS := -std=c17 -D_GNU_SOURCE -Iinclude -Isrc -I$(BUILD) $(CUDA_FLAGS) $(WARN) -fvisibility=hidden -fPIC -pthread \
	$(shell pkg-config --cflags $(PKGS) 2>/dev/null) $(CFLAGS) $(SAN_FLAGS) $(EXACT)
LINK = $(CC) -pthread $(CFLAGS) $(SAN_LINK) -Wl,--as-needed $(LDFLAGS)
LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -ldl
MISSING = $(strip $(if $(shell command -v $(firstword $(CC)) 2>&1),,$(CC)) \
	$(if $(shell command -v pkg-config 2>&1),$(foreach p,$(PKGS),$(if $(shell pkg-config --exists $p && echo y),,$p)),pkg-config))

# ---- sources ----

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))

# One template for the inner loops, compiled once for each instruction set.
TMPL := src/backend/cpu/isa_tmpl.c
ISAS := ref $(if $(filter x86_64%,$(shell $(CC) -dumpmachine 2>/dev/null)),avx2 avx512)
ISA_FLAGS_ref := -O3 -Wno-psabi
ISA_FLAGS_avx2 := $(ISA_FLAGS_ref) -mavx2 -mfma -mf16c
ISA_FLAGS_avx512 := $(ISA_FLAGS_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512
ISA_OBJ := $(if $(wildcard $(TMPL)),$(ISAS:%=$(BUILD)/src/backend/cpu/isa_%.o))

SRC := $(sort $(filter-out $(TMPL) $(if $(NVCC),,src/backend/cuda/%.c src/engine/cuda_%.c),$(shell find src -name '*.c')))
# The command line and the server use the library; they are no part of it.
LIB_OBJ := $(call obj,$(filter-out src/cli/% src/server/%,$(SRC))) $(ISA_OBJ)
SERVER_OBJ := $(call obj,$(filter src/server/%,$(SRC)))
CLI_OBJ := $(call obj,$(filter src/cli/%,$(SRC))) $(SERVER_OBJ)
LIB := $(BUILD)/liblockstep.a
APP := $(BUILD)/lockstep

VERSION := $(shell sed -n 's/^#define LS_VERSION "\(.*\)"/\1/p' include/lockstep.h)
COMMIT ?= $(shell git describe --always --dirty --abbrev=9 2>/dev/null || echo unknown)
SONAME := liblockstep.so.$(firstword $(subst ., ,$(VERSION)))
SHARED := $(BUILD)/liblockstep.so.$(VERSION)

# Made from the options table, and laid out as they are installed.
MAKE_DOCS := $(BUILD)/tools/make_docs
MAKE_DOCS_OBJ := $(call obj,tools/make_docs.c) $(filter $(BUILD)/src/base/%,$(LIB_OBJ))
MADE_DOCS := $(addprefix $(BUILD)/share/,man/man1/lockstep.1 bash-completion/completions/lockstep zsh/site-functions/_lockstep)

EXAMPLE_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard examples/*.c))
TESTS := $(wildcard tests/unit/test_*.c tests/kern/test_*.c tests/e2e/test_*.c)
# Other .c files in a test folder are linked into each test of that folder.
TEST_HELPERS := $(filter-out $(TESTS),$(wildcard tests/unit/*.c tests/kern/*.c tests/e2e/*.c))
TEST_BIN := $(TESTS:%.c=$(BUILD)/%)
HTTP_TESTS := $(wildcard tests/http/test_*.py)
# What a GPU runs: its own tests, and those against transformers; before them, programs that check it op by op.
GPU_TESTS := $(if $(NVCC),$(wildcard tests/cuda/test_*.c) tests/e2e/test_golden.c tests/e2e/test_demo.c)
GPU_BIN := $(GPU_TESTS:%.c=$(BUILD)/%)
GPU_CHECKS := $(if $(NVCC),$(addprefix $(BUILD)/tests/cuda/,decode/decode_check decode/sample_check persist/persist_check prefill_check load_check))
# ... and programs that time what the checks before them check: prompts, and decode steps as one kernel (`make kbench K=tape`).
PERSIST_BENCH := $(BUILD)/tests/cuda/persist/persist_bench
GPU_BENCHES := $(if $(NVCC),$(BUILD)/tests/cuda/prefill_bench $(PERSIST_BENCH))
FUZZERS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

# ---- build ----

all: $(APP)

# Two stamps, rewritten only when their text changes: other flags rebuild all, an added or removed file the archive.
stamp = $(Q)mkdir -p $(@D); echo '$(subst ','\'',$(1))' | cmp -s - $@ || echo '$(subst ','\'',$(1))' >$@
$(BUILD)/flags: FORCE
	$(if $(MISSING),$(error $(MISSING) not found: run ./setup.sh))
	$(call stamp,$(CC) $(FLAGS) / $(LINK) $(LIBS) / $(foreach i,$(ISAS),$(ISA_FLAGS_$i)))
$(BUILD)/sources: FORCE
	$(call stamp,$(LIB_OBJ) $(CLI_OBJ))

# What results of measurements say they come from.
$(BUILD)/commit.inc: FORCE
	$(call stamp,"$(COMMIT)")
$(BUILD)/src/cli/bench/commit.o: $(BUILD)/commit.inc

compile = $(Q)mkdir -p $(@D); $(CC) $(FLAGS) $(1) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.c $(BUILD)/flags
	$(call say,CC,$<)
	$(call compile)
$(ISA_OBJ): $(BUILD)/src/backend/cpu/isa_%.o: $(TMPL) $(BUILD)/flags
	$(call say,CC,$< $*)
	$(call compile,-DCPU_ISA=$* $(ISA_FLAGS_$*))
$(BUILD)/tests/%.o: tests/%.c $(BUILD)/flags | need-cmocka
	$(call say,CC,$<)
	$(call compile,-Itests)
need-cmocka:
	$(if $(shell pkg-config --exists cmocka && echo y),,$(error cmocka not found: run ./setup.sh))

# Kernels: an image for each .cu and chip, embedded by images.c.
KERN := $(if $(NVCC),$(sort $(wildcard src/backend/cuda/kern/*.cu)))
NVCC_FLAGS := -std=c++17 -O3 $(if $(LINEINFO),-lineinfo) -Isrc -Xptxas -warn-spills
image = $(KERN_BUILD)/$(basename $(notdir $(1))).$(2)$(if $(filter compute_%,$(2)),.ptx,.cubin)
IMAGES := $(foreach k,$(KERN),$(foreach a,$(ARCHS),$(call image,$k,$a)))
$(KERN_BUILD)/flags: FORCE
	$(call stamp,$(NVCC) $(NVCC_FLAGS))
$(KERN_BUILD)/images.inc: FORCE
	$(call stamp,$(foreach k,$(KERN),$(foreach a,$(ARCHS),$(call image_line,$(basename $(notdir $k)),$a))))
$(KERN_BUILD)/archs.inc: FORCE
	$(call stamp,"$(ARCHS)")
image_line = IMAGE($(1)_$(2), "$(1)", "$(lastword $(subst _, ,$(2)))", $(if $(filter compute_%,$(2)),true,false), "$(abspath $(call image,$(1),$(2)))")
define kern_rule
$(call image,$(1),$(2)): $(1) $(KERN_BUILD)/flags
	$$(call say,NVCC,$(1) $(2))
	$(Q)mkdir -p $$(@D); $(NVCC) $(NVCC_FLAGS) $(if $(filter compute_%,$(2)),-ptx -arch=$(2),-cubin -gencode=arch=$(2:sm_%=compute_%)$(comma)code=$(2)) -MD -MP -MF $$@.d $$< -o $$@
endef
$(foreach k,$(KERN),$(foreach a,$(ARCHS),$(eval $(call kern_rule,$k,$a))))
-include $(IMAGES:=.d)
$(BUILD)/src/backend/cuda/images.o: $(KERN_BUILD)/images.inc $(KERN_BUILD)/archs.inc $(IMAGES)

$(LIB): $(LIB_OBJ) $(BUILD)/sources
	$(call say,AR,$@)
	$(Q)rm -f $@; ar qcs $@ $(LIB_OBJ)
$(APP): $(CLI_OBJ) $(LIB) $(BUILD)/sources
	$(call say,LINK,$@)
	$(Q)$(LINK) $(CLI_OBJ) $(LIB) $(LIBS) -o $@
$(SHARED): $(LIB_OBJ) $(BUILD)/sources
	$(call say,LINK,$@)
	$(Q)$(LINK) -shared -Wl,-soname,$(SONAME) -Wl,-Bsymbolic $(if $(SAN),,-Wl$(comma)-z$(comma)defs) $(LIB_OBJ) $(LIBS) -o $@
$(MAKE_DOCS): $(MAKE_DOCS_OBJ)
	$(call say,LINK,$@)
	$(Q)$(LINK) $^ $(LIBS) -o $@
$(MADE_DOCS): $(MAKE_DOCS)
	$(call say,DOCS,$@)
	$(Q)mkdir -p $(@D); $(MAKE_DOCS) $(@F) >$@
docs: $(MAKE_DOCS)
	@for page in commands options; do $(MAKE_DOCS) $$page.md >docs/$$page.md && echo "written: docs/$$page.md"; done
# An example sees what a user sees: the public header and the library.
$(BUILD)/examples/%: examples/%.c $(LIB)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D); $(CC) $(filter-out -Isrc,$(FLAGS)) -MMD -MP $< $(LIB) $(LIBS) -o $@

define link_tests
$(filter $(BUILD)/tests/$(1)/%,$(TEST_BIN)): %: %.o $(call obj,$(filter tests/$(1)/%,$(TEST_HELPERS))) $(LIB)
	$$(call say,LINK,$$@)
	$(Q)$(LINK) $$^ $(LIBS) -lcmocka -o $$@
endef
$(foreach dir,unit kern e2e,$(if $(filter tests/$(dir)/%,$(TESTS)),$(eval $(call link_tests,$(dir)))))
# With the helpers of the tests that run whole engines.
CUDA_HELPERS := $(call obj,$(filter tests/e2e/%,$(TEST_HELPERS)))
$(filter $(BUILD)/tests/cuda/%,$(GPU_BIN)): %: %.o $(CUDA_HELPERS) $(LIB)
	$(call say,LINK,$@)
	$(Q)$(LINK) $^ $(LIBS) -lcmocka -o $@
CHECK_PARTS_decode_check := $(BUILD)/tests/cuda/decode/decode_device.o
CHECK_PARTS_sample_check := $(CHECK_PARTS_decode_check)
CHECK_PARTS_persist_check := $(CHECK_PARTS_decode_check) $(BUILD)/tests/cuda/persist/persist_model.o
CHECK_PARTS_persist_bench := $(CHECK_PARTS_persist_check)
define link_check
$(1): $(1).o $(CHECK_PARTS_$(notdir $(1))) $(LIB)
	$$(call say,LINK,$$@)
	$(Q)$(LINK) $$(filter %.o,$$^) $(LIB) $(LIBS) -o $$@
endef
$(foreach t,$(GPU_CHECKS) $(GPU_BENCHES),$(eval $(call link_check,$t)))

-include $(patsubst %.o,%.d,$(LIB_OBJ) $(CLI_OBJ) $(call obj,$(TESTS) $(TEST_HELPERS) tools/make_docs.c $(FUZZERS:%=tests/fuzz/fuzz_%.c))) \
	$(EXAMPLE_BIN:=.d) $(GPU_BIN:=.d) $(GPU_CHECKS:=.d) $(GPU_BENCHES:=.d) $(CHECK_PARTS_persist_check:.o=.d)

# ---- tests ----

CANARY := $(BUILD)/tests/unit/test_canary
RUN_TESTS = LOCKSTEP_DEVICE=$${LOCKSTEP_DEVICE:-cpu} LS_BIN=$(APP) LS_SAN=$(firstword $(subst $(comma), ,$(SANITIZE))) $(NO_ASLR) tests/run --canary $(CANARY) $(if $(SANITIZE),--timeout 900)
# What one thread does, or others do on the same threads: ThreadSanitizer, ten times slower, need not see it (ONLY= shows it all).
NOT_THREADED := $(addprefix $(BUILD)/tests/unit/test_,token_vectors tokenizer tokenizer_cache sampling_vectors chat_template detokenize) \
	$(addprefix $(BUILD)/tests/e2e/test_,bench bits chat cli demo example generate_options golden install memory perplexity plan prefix sampling)
ALL_TESTS := $(filter-out $(if $(filter thread,$(SANITIZE)),$(if $(ONLY),,$(NOT_THREADED))),$(TEST_BIN) $(HTTP_TESTS))
CHOSEN := $(if $(ONLY),$(foreach t,$(ALL_TESTS),$(if $(findstring $(ONLY),$t),$t)),$(ALL_TESTS))
KERN_BIN := $(filter $(BUILD)/tests/kern/%,$(TEST_BIN))

# The whole check fuzzes each target for half a minute first; a chosen or a sanitized one does not.
check: $(APP) $(SHARED) $(MADE_DOCS) $(EXAMPLE_BIN) $(TEST_BIN) build/python/made
	@$(if $(ONLY)$(SAN),:,$(MAKE) --no-print-directory fuzz-short)
	@$(RUN_TESTS) $(CHOSEN)
# The one package of PyPI that tests use; without a network they skip what needs it, and say so.
build/python/made: tests/http/requirements.txt
	$(call say,PYPI,$(@D))
	$(Q)if python3 -m venv $(@D) && $(@D)/bin/pip install -q --disable-pip-version-check --timeout 20 --retries 1 -r $<; \
		then touch $@; else echo 'check: no packages from PyPI$(comma) so tests of the openai package are skipped'; fi
kcheck: $(CANARY) $(KERN_BIN)
	@LS_KERN=$(K) $(RUN_TESTS) $(KERN_BIN)
ifeq ($(K),tape)
# On a GPU; elsewhere carry build/gpu/persist_bench to one (make gpu-bundle). MODELS: names or folders.
MODELS ?= Qwen3-4B
kbench: $(if $(NVCC),$(PERSIST_BENCH))
	@$(if $(NVCC),:,echo 'kbench K=tape: built without CUDA$(comma) because nvcc was not found'; exit 1)
	@$(foreach m,$(MODELS),$(PERSIST_BENCH) $m --ops --table &&) :
else
kbench: $(CANARY) $(KERN_BIN)
	@LS_KERN=$(K) LS_KBENCH=1 $(RUN_TESTS) --jobs 1 --timeout 3600 --show $(KERN_BIN)
endif
# The driver, NCCL and the kernels emulated (tests/cuda/driver): GPUs, ranks and hosts that fail.
emulated-check: $(APP) $(CANARY)
	$(call say,EMULATE,build/emulated)
	$(Q)tests/cuda/driver/build > $(BUILD)/emulated.log 2>&1 || { cat $(BUILD)/emulated.log; exit 1; }
	@$(RUN_TESTS) --jobs 1 --timeout 1800 tests/cuda/driver/fail_check tests/cuda/driver/hosts_check
gpu-check gpu-sanitize: $(APP) $(CANARY) $(GPU_BIN) $(GPU_CHECKS)
	@$(if $(NVCC),:,echo '$@: built without CUDA$(comma) because nvcc was not found'; exit 1)
	@ONLY='$(ONLY)' TOOLS='$(TOOLS)' tests/gpu $(@:gpu-%=%) $(APP) $(CANARY) $(GPU_CHECKS) $(GPU_BIN)

# What needs no library: the kernels and what lies below them. test_ops takes minutes in qemu, so some ops stand for all.
ARM_CC := aarch64-linux-gnu-gcc
ARM_SRC := $(filter-out src/base/json.c,$(wildcard src/base/*.c)) $(wildcard src/backend/cpu/*.c) \
	$(filter-out %/hosts.c %/exchange_hosts.c %/link_tcp.c %/link_mpi.c,$(wildcard src/rank/*.c))
ARM_OBJ := $(call obj,$(filter-out $(TMPL),$(ARM_SRC))) $(ISA_OBJ) $(call obj,$(filter tests/kern/%,$(TEST_HELPERS)))
ARM_OPS := qkv attn out
check-aarch64:
	@if command -v $(ARM_CC) >/dev/null && command -v qemu-aarch64 >/dev/null; \
	then $(MAKE) --no-print-directory CC=$(ARM_CC) PKGS= CFLAGS='-O2 -g -Itests/nolibs' BUILD=build/aarch64 aarch64-run; \
	else echo 'check-aarch64: skipped: needs $(ARM_CC) (gcc-aarch64-linux-gnu) and qemu-aarch64 (qemu-user)'; fi
aarch64-run: $(BUILD)/arm_dot $(BUILD)/arm_ops
	@qemu-aarch64 $(BUILD)/arm_dot
	@for op in $(ARM_OPS); do LS_SAN=qemu LS_KERN=$$op qemu-aarch64 $(BUILD)/arm_ops || exit 1; done
$(BUILD)/arm_%: $(BUILD)/tests/kern/test_%.o $(ARM_OBJ)
	$(call say,LINK,$@)
	$(Q)$(LINK) -static $^ -lm -o $@

DEMO = generate -m demo -p "Once upon a time, there was a little dog named" -n 200 --temp 0
demo: $(APP)
	@$(APP) $(DEMO)
# BENCH: options of all measurements of engines.
BENCH ?= -m demo
bench: $(APP) $(CANARY) $(KERN_BIN)
	@mkdir -p bench/results
	@$(MAKE) --no-print-directory kbench >bench/results/kernels.txt || { cat bench/results/kernels.txt; exit 1; }
	@$(APP) $(DEMO) --json >bench/results/demo.json
	@bench/all.sh $(APP) build/bench $(BENCH) || [ -s build/bench/report.html ]
	@echo 'written: bench/results/kernels.txt bench/results/demo.json build/bench/report.html'

# The server under clients that leave and send garbage, beside ones whose answers must be right: ten minutes.
SOAK ?= --seconds 600 --disconnects 10000
soak: $(APP)
	@LS_BIN=$(APP) LS_SAN=$(firstword $(subst $(comma), ,$(SANITIZE))) $(NO_ASLR) tests/http/soak.py $(SOAK)

# ---- fuzzing: clang's libFuzzer, in a build of its own ----

FUZZ_SECONDS ?= 1200
fuzz:
	@$(MAKE) --no-print-directory SAN=fuzz CC=clang CFLAGS='-O1 -g' BUILD=build/fuzz FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz-run
fuzz-short:
	@$(MAKE) --no-print-directory FUZZ_SECONDS=30 fuzz
fuzz-run: $(FUZZERS:%=fuzz-run-%)
	@$(if $(FUZZERS),:,echo 'fuzz: there is no tests/fuzz/fuzz_*.c'; exit 1)
# The corpus grows in build/, so that the tree stays clean; findings lie beside it.
fuzz-run-%: $(BUILD)/fuzz_%
	@mkdir -p $(BUILD)/corpus/$* && if [ -d tests/fuzz/corpus/$* ]; then cp -r tests/fuzz/corpus/$* $(BUILD)/corpus/; fi
	@if $(NO_ASLR) $< -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
		-artifact_prefix=$(BUILD)/$*- $(BUILD)/corpus/$* >$<.log 2>&1 </dev/null; \
	then echo "fuzz $*: $(FUZZ_SECONDS) s, $$(sed -n 's/^stat::number_of_executed_units: *//p' $<.log) inputs, no finding"; \
	else tail -n 60 $<.log; echo "fuzz $*: FAILED; to repeat: $< FILE, one of:"; ls -t $(BUILD)/$*-*; exit 1; fi
$(BUILD)/fuzz_serve: $(SERVER_OBJ)
$(BUILD)/fuzz_results: $(filter $(BUILD)/src/cli/report/% $(BUILD)/src/cli/bench/results.o $(BUILD)/src/cli/bench/write.o,$(CLI_OBJ))
$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(LIB)
	$(call say,LINK,$@)
	$(Q)$(LINK) $(filter %.o,$^) $(LIB) $(LIBS) -o $@ || { echo "If clang's fuzzer runtime is missing: run ./setup.sh (libclang-rt-dev)"; exit 1; }

# ---- lint ----

# clang-tidy's verdict on a file holds until the file, a header it includes, or the flags change: as does its object.
TIDY := $(patsubst %.c,$(BUILD)/tidy/%.ok,$(SRC))
# A build in which warnings are errors serves as it is.
LINT := $(if $(filter 1,$(WERROR)),$(BUILD),build/lint)
lint:
	@$(MAKE) --no-print-directory BUILD=$(LINT) WERROR=1 lint-build
	@status=0; tools/lint.py --self-test || status=1; tools/lint.py --library $(LINT)/liblockstep.a || status=1; \
	$(MAKE) --no-print-directory -k BUILD=$(LINT) WERROR=1 lint-tidy || status=1; exit $$status
lint-build: $(LIB) $(CLI_OBJ)
lint-tidy: $(TIDY)
$(BUILD)/tidy/%.ok: %.c $(BUILD)/%.o .clang-tidy
	$(if $(shell command -v clang-tidy 2>&1),,$(error clang-tidy not found: run ./setup.sh))
	$(call say,TIDY,$<)
	$(Q)mkdir -p $(@D); clang-tidy --quiet $< -- $(filter-out -Werror,$(FLAGS)) -Wno-unknown-warning-option >$@.log 2>&1 \
		|| { grep -v 'warnings* generated' $@.log; exit 1; }
	$(Q)touch $@
format:
	@tools/lint.py --format

# ---- packages ----

PREFIX ?= /usr/local
bindir ?= $(PREFIX)/bin
libdir ?= $(PREFIX)/lib
includedir ?= $(PREFIX)/include
datadir ?= $(PREFIX)/share

# What is installed, as MODE|FILE|FOLDER/NAME; uninstall reads the same list.
to = $(foreach f,$(3),$(1)|$f|$(2)/$(notdir $f))
INSTALLED = $(call to,755,$(bindir),$(APP)) $(call to,755,$(libdir),$(SHARED)) $(call to,644,$(libdir),$(LIB)) \
	$(call to,644,$(libdir)/pkgconfig,$(BUILD)/lockstep.pc) $(call to,644,$(includedir),$(wildcard include/*.h)) \
	$(foreach f,$(MADE_DOCS),644|$f|$(datadir)/$(f:$(BUILD)/share/%=%)) \
	$(call to,644,$(datadir)/lockstep/demo,$(wildcard demo/*)) \
	$(call to,644,$(datadir)/doc/lockstep,README.md LICENSE) $(call to,644,$(datadir)/doc/lockstep/docs,$(wildcard docs/*.md)) \
	$(call to,644,$(datadir)/doc/lockstep/examples,$(wildcard examples/*.c examples/*.py))
SO_LINKS = $(SONAME) liblockstep.so
OWN_FOLDERS = lockstep/demo lockstep doc/lockstep/examples doc/lockstep/docs doc/lockstep

# The libraries behind ours are named, not required: the header needs none of theirs, and what they in turn ask of a static
# program (libcurl: kerberos, ldap, ...) is not needed where they are shared. libedit, libevent and libssl are the program's alone.
define PC_FILE
prefix=$(PREFIX)
libdir=$(patsubst $(PREFIX)/%,$${prefix}/%,$(libdir))
includedir=$(patsubst $(PREFIX)/%,$${prefix}/%,$(includedir))

Name: lockstep
Description: Tensor-parallel inference for open-weight language models
Version: $(VERSION)
Libs: -L$${libdir} -llockstep
Libs.private: $(strip $(shell pkg-config --libs $(filter-out libedit libssl libevent%,$(PKGS))) -lm -ldl -pthread)
Cflags: -I$${includedir}
endef
$(BUILD)/lockstep.pc: export PC = $(PC_FILE)
$(BUILD)/lockstep.pc: FORCE
	$(Q)mkdir -p $(@D); printenv PC >$@

part = $(word $(1),$(subst |, ,$(2)))
install: $(APP) $(LIB) $(SHARED) $(MADE_DOCS) $(BUILD)/lockstep.pc
	$(foreach i,$(INSTALLED),install -D -m $(call part,1,$i) $(call part,2,$i) '$(DESTDIR)$(call part,3,$i)'$(newline)	)
	$(foreach l,$(SO_LINKS),ln -sf $(notdir $(SHARED)) '$(DESTDIR)$(libdir)/$l'$(newline)	)
	$(if $(DESTDIR),,-ldconfig 2>/dev/null)
uninstall:
	$(foreach i,$(INSTALLED),rm -f '$(DESTDIR)$(call part,3,$i)'$(newline)	)
	$(foreach l,$(SO_LINKS),rm -f '$(DESTDIR)$(libdir)/$l'$(newline)	)
	$(foreach f,$(OWN_FOLDERS),[ ! -d '$(DESTDIR)$(datadir)/$f' ] || rmdir --ignore-fail-on-non-empty '$(DESTDIR)$(datadir)/$f'$(newline)	)

# The old kind of rpath (not RUNPATH), because it also finds the libraries that our libraries need. glibc stays outside: it
# belongs to the kernel and loader of the machine.
GLIBC := linux-vdso|ld-linux|libc|libm|libpthread|libdl|librt|libresolv|libutil
BUNDLE := $(BUILD)/bundle
bundled_link = $(LINK) -s -Wl,--disable-new-dtags -Wl,-rpath,'$$ORIGIN/lib'
outside = ldd $(1) | awk '$$3 ~ /^\// { print $$3 }' | grep -Ev '/($(GLIBC))[.-]' | sort -u
bundle: $(APP)
	@rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/lib
	@$(LINK) -Wl,--disable-new-dtags -Wl,-rpath,'$$ORIGIN/lib' $(CLI_OBJ) $(LIB) $(LIBS) -o $(BUNDLE)/lockstep
	@cp -L $$(ldd $(BUNDLE)/lockstep | awk '$$3 ~ /^\// { print $$3 }' | grep -Ev '/($(GLIBC))[.-]') $(BUNDLE)/lib/
	@cp -r demo LICENSE $(BUNDLE)/
	@if ldd $(BUNDLE)/lockstep | awk '$$3 ~ /^\// { print $$3 }' | grep -Ev '/($(GLIBC))[.-]|^$(abspath $(BUNDLE))/'; \
		then echo 'bundle: these libraries lie outside'; exit 1; fi
	@cd $(BUNDLE) && env -i ./lockstep $(subst -n 200,-n 8,$(DEMO)) >../bundle.log 2>&1 || { cat ../bundle.log; exit 1; }
	@echo "$(BUNDLE): $$(du -sh $(BUNDLE) | cut -f1), runs"

# For a machine that has a GPU and nothing else: the program and the tests for GPUs, to be run in a copy of this tree.
GPU_BUNDLE := $(BUILD)/gpu
gpu-bundle: $(APP) $(CANARY) $(GPU_BIN) $(GPU_CHECKS) $(GPU_BENCHES)
	@$(if $(NVCC),:,echo 'gpu-bundle: nvcc was not found'; exit 1)
	@rm -rf $(GPU_BUNDLE) && mkdir -p $(GPU_BUNDLE)/lib
	@$(bundled_link) $(CLI_OBJ) $(LIB) $(LIBS) -o $(GPU_BUNDLE)/lockstep
	@$(bundled_link) -shared -Wl,-Bsymbolic $(LIB_OBJ) $(LIBS) -o $(GPU_BUNDLE)/liblockstep.so
	@$(bundled_link) $(CANARY).o $(call obj,$(filter tests/unit/%,$(TEST_HELPERS))) $(LIB) $(LIBS) -lcmocka -o $(GPU_BUNDLE)/test_canary
	@$(foreach t,$(GPU_BIN),$(bundled_link) $t.o $(CUDA_HELPERS) $(LIB) $(LIBS) -lcmocka -o $(GPU_BUNDLE)/$(notdir $t) &&) :
	@$(foreach t,$(GPU_CHECKS) $(GPU_BENCHES),$(bundled_link) $t.o $(CHECK_PARTS_$(notdir $t)) $(LIB) $(LIBS) -o $(GPU_BUNDLE)/$(notdir $t) &&) :
	@cp -L $$($(call outside,$(addprefix $(GPU_BUNDLE)/,lockstep $(notdir $(CANARY) $(GPU_BIN))))) $(GPU_BUNDLE)/lib/
	@for what in check sanitize; do { echo '#!/bin/sh'; echo '# In the root of the tree.'; echo 'here=$$(dirname "$$0")'; \
		echo "exec tests/gpu $$what" '"$$here/lockstep" "$$here/test_canary"' \
		'$(foreach t,$(notdir $(GPU_CHECKS) $(GPU_BIN)),"$$here/$t")'; } >$(GPU_BUNDLE)/$$what; done
	@chmod +x $(GPU_BUNDLE)/check $(GPU_BUNDLE)/sanitize && cd $(GPU_BUNDLE) && ./test_canary >/dev/null 2>&1 && ./lockstep --version
	@echo "$(GPU_BUNDLE): $$(du -sm $(GPU_BUNDLE) | cut -f1) MiB"

clean:
	rm -rf $(BUILD)
help:
	@sed -n 's/^## \{0,1\}//p' Makefile
