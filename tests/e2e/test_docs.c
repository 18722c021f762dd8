/*
 * What is made from the options table, and what is said about it: the committed pages are those of today's table, the man
 * page formats without a warning and names every variable that is read, the completions complete.
 */
#include "e2e.h"

static char build[PATH_BYTES];

static int find_build(void **state) {
    (void)state;
    build_folder(build);
    return 0;
}

static void committed_pages_are_fresh(void **state) {
    (void)state;
    static const char *const pages[] = {"commands.md", "options.md"};
    char out[8192];
    for (size_t i = 0; i < COUNT(pages); i++) {
        if (shell(out, sizeof out, "%s/tools/make_docs %s | diff docs/%s -", build, pages[i], pages[i]) != 0) {
            fail_msg("docs/%s is not what the options table gives; run `make docs`:\n%s", pages[i], out);
        }
    }
    assert_int_equal(shell(out, sizeof out, "%s/tools/make_docs other.md", build), 2);
}

static void links_lead_somewhere(void **state) {
    (void)state;
    char out[8192];
    SHELL(out, "for page in README.md docs/*.md; do grep -oE '\\]\\([^)#]+' $page | cut -c 3- | grep -v '^https:' | "
               "while read -r link; do [ -e \"$(dirname $page)/$link\" ] || echo \"$page: $link\"; done; done");
    assert_string_equal(out, "");
}

/* "Follow one token" in docs/architecture.md: each name is in the file that stands beside it. */
static void followed_names_are_there(void **state) {
    (void)state;
    char out[8192];
    SHELL(out,
          "sed -n '/^cmd_generate/,/^```/p' docs/architecture.md | grep -v '^```' | while read -r name path rest; do "
          "grep -qw \"$name\" $path && echo good || echo \"$path has no $name\"; done | sort | uniq -c | tr -s ' '");
    assert_string_equal(out, " 6 good\n");
}

static void man_page_formats(void **state) {
    (void)state;
    char out[8192];
    if (!has_program("groff") && !has_program("mandoc")) {
        print_message("skipped: neither groff nor mandoc is here\n");
        skip();
    }
    if (has_program("groff")) {
        SHELL(out, "groff -man -Tutf8 -ww %s/share/man/man1/lockstep.1 2>&1 >/dev/null", build);
        assert_string_equal(out, "");
    }
    if (has_program("mandoc")) {
        SHELL(out, "mandoc -Tlint %s/share/man/man1/lockstep.1", build);
        assert_string_equal(out, "");
    }
}

static void man_page_names_every_variable(void **state) {
    (void)state;
    char out[8192];
    SHELL(out,
          "names=$(grep -oE '\\b(getenv|variable)\\(\"[A-Z_]+\"' src/base/options.c | cut -d '\"' -f 2); "
          "echo $names | grep -q XDG_CACHE_HOME || exit 1; "
          "for name in $names; do grep -qw $name %s/share/man/man1/lockstep.1 || echo $name; done",
          build);
    assert_string_equal(out, "");
}

/* What bash offers for the last of these words: sorted, a line each. */
static void assert_completes(const char *words, const char *expected) {
    char out[16384];
    SHELL(out,
          "bash --norc -c 'source %s/share/bash-completion/completions/lockstep; COMP_WORDS=(lockstep %s); "
          "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _lockstep; printf \"%%s\\n\" \"${COMPREPLY[@]}\"' | sort -u",
          build, words);
    if (strcmp(out, expected) != 0) {
        fail_msg("lockstep %s: expected\n%sgot\n%s", words, expected, out);
    }
}

static void bash_completes(void **state) {
    (void)state;
    char out[8192];
    if (!has_program("bash")) {
        print_message("skipped: bash is not here\n");
        skip();
    }
    SHELL(out, "bash -n %s/share/bash-completion/completions/lockstep", build);
    assert_completes("ge", "generate\n");
    assert_completes(
        "\"\"",
        "--help\n--version\nbench\nchat\ndoctor\ngenerate\nhelp\nperplexity\nplan\npull\nreport\nserve\ntemplate\n"
        "tokenize\nverify\n");
    assert_completes("generate --top", "--top-k\n--top-p\n");
    assert_completes("pull --top", "\n");
    assert_completes("generate --dtype \"\"", "auto\nbf16\nf16\nf32\n");
    assert_completes("generate -p Once --dtype = b", "bf16\n");
    assert_completes("generate --dtype =", "auto\nbf16\nf16\nf32\n");
    assert_completes("generate -dtype f1", "f16\n");
    assert_completes("generate -p \"\"", "\n");
    assert_completes("generate -m dem", "demo\n");
    assert_completes("plan dem", "demo\n");
    assert_completes("generate -f READ", "README.md\n");
    assert_completes("generate --cache-folder READ", "\n");
    assert_completes("help cha", "chat\n");
}

static void zsh_reads_the_completion(void **state) {
    (void)state;
    char out[8192];
    if (!has_program("zsh")) {
        print_message("skipped: zsh is not here\n");
        skip();
    }
    SHELL(out, "zsh -n %s/share/zsh/site-functions/_lockstep", build);
    assert_string_equal(out, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(committed_pages_are_fresh),     cmocka_unit_test(links_lead_somewhere),
        cmocka_unit_test(followed_names_are_there),      cmocka_unit_test(man_page_formats),
        cmocka_unit_test(man_page_names_every_variable), cmocka_unit_test(bash_completes),
        cmocka_unit_test(zsh_reads_the_completion),
    };
    return cmocka_run_group_tests(tests, find_build, NULL);
}
