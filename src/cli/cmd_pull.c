/* lockstep pull: a model of the hub, downloaded into the local cache. Prints its folder. */
#include <stdio.h>

#include "cli/cli.h"

static ls_status pull(ls_options *options, int argc, char **argv, ls_error *err) {
    char folder[4096];
    TRY(options_init(options, err));
    TRY(args_parse(options, COMMAND_PULL, argc, argv, err));
    if (!options->value[OPT_MODEL].set) {
        return error_set(err, LS_EINVAL, "pull needs the name of a model: lockstep pull Qwen/Qwen3-4B");
    }
    TRY(cli_hub_find(options, false, folder, sizeof folder, err));
    printf("%s\n", folder);
    return LS_OK;
}

int cmd_pull(int argc, char **argv) {
    ls_options options = {0};
    ls_error error = {0};
    ls_status st = pull(&options, argc, argv, &error);
    int code = st < 0 ? cli_fail(&error, options.value[OPT_VERBOSE].integer != 0) : EXIT_GOOD;
    options_deinit(&options);
    return code;
}
