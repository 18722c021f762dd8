# lockstep: see `make help`.
CC ?= gcc
BUILD ?= build
PKGS := jansson libpcre2-8 libutf8proc hwloc
WARN := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wno-format-truncation
CFLAGS ?= -O2 -g
SRC := $(sort $(shell find src -name '*.c'))
LIB_SRC := $(filter-out src/cli/%,$(SRC))
CLI_SRC := $(filter src/cli/%,$(SRC))
ALL_CFLAGS := -std=c17 -D_GNU_SOURCE -Iinclude -Isrc $(WARN) -ffp-contract=off -fvisibility=hidden -pthread $(CFLAGS) $(shell pkg-config --cflags $(PKGS))
LIBS := $(shell pkg-config --libs $(PKGS)) -lm -pthread
obj = $(patsubst %.c,$(BUILD)/%.o,$(1))

all: $(BUILD)/lockstep
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/liblockstep.a: $(call obj,$(LIB_SRC))
	rm -f $@; ar rcs $@ $^
$(BUILD)/lockstep: $(call obj,$(CLI_SRC)) $(BUILD)/liblockstep.a
	$(CC) $(ALL_CFLAGS) $^ $(LIBS) -o $@
$(BUILD)/tests/%: tests/%.c $(BUILD)/liblockstep.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -Itests -MMD -MP $< $(BUILD)/liblockstep.a $(LIBS) -lcmocka -o $@
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
.PHONY: all
