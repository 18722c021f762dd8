#!/bin/sh
# Installs the Debian packages that lockstep's build, tests and lint need. Does nothing where all are there, and then
# uses no network. As root it installs; else through sudo; where it may do neither it prints the one command and exits 1.
set -eu

# The one list: package, reason. The names hold on Debian 12 (bookworm) and 13 (trixie).
list() {
    cat <<'END'
build-essential   gcc, make and the C library's headers
pkg-config        flags of the libraries below
libjansson-dev    JSON
libpcre2-dev      regular expressions of the tokenizer
libutf8proc-dev   Unicode normalisation
libcurl4-openssl-dev  downloads from the hub
libssl-dev        SHA-256 of what was downloaded
libedit-dev       the line of lockstep chat
libevent-dev      HTTP server of lockstep serve
libhwloc-dev      cores, caches and NUMA nodes
libcmocka-dev     tests
openmpi-bin       tests of several hosts: mpirun and the library
gnuplot-nox       plots of lockstep report, which has tables alone without it
iproute2          tests of several hosts: network namespaces
python3           tests/run and tools/lint.py
python3-venv      tests with the openai package
curl              tests of the server
clang             fuzzing
libclang-rt-dev   clang's sanitizers and fuzzer
clang-format      make format, make lint
clang-tidy        make lint
shellcheck        make lint
END
}

say() {
    echo "setup: $*"
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say 'this is not Debian or one of its kin; please install what these packages hold (Debian name, reason):'
    list
    exit 1
fi

# One line per installed package, with what it provides: pkgconf stands for pkg-config on newer systems.
# shellcheck disable=SC2016
installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}, ${Provides},\n')
missing=
for package in $(list | cut -d ' ' -f 1); do
    if ! echo "$installed" | grep -Eq "^.i.* $package( \(|,)"; then
        missing="$missing $package"
    fi
done
missing=${missing# }
if [ -z "$missing" ]; then
    say 'all packages are installed'
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    root='sudo -n'
elif command -v sudo >/dev/null && [ -t 0 ]; then
    root=sudo # asks for the password
else
    say 'packages are missing, and I may not install them. As root, run:'
    echo "apt-get install -y --no-install-recommends $missing"
    exit 1
fi

say "installing $missing"
# $root and $missing are lists of words.
# shellcheck disable=SC2086
install() {
    $root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y \
        --no-install-recommends $missing </dev/null
}

# The package lists may be absent (fresh container) or too old to match the mirror: then, and only then, update them.
# shellcheck disable=SC2086
if ! apt-get install -s --no-install-recommends $missing >/dev/null 2>&1 || ! install; then
    say 'updating the package lists'
    $root env DEBIAN_FRONTEND=noninteractive apt-get update </dev/null
    install
fi
say 'done'
