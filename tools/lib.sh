# Shared by tools/demo, tools/test and tools/check: brings a bare Debian-like machine to a built checkout.
# Every step prints what it does; a failing step prints what is missing and what to do, and exits non-zero.
# A second run finds its stamps and takes seconds. Source it; it changes to the top of the checkout.
set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$TOP/.venv
STEP="start" REMEDY="read the lines above"
cd "$TOP"
# An activated .venv must not be the Python that creates it; dpkg needs the sbin folders.
export PATH="${PATH//"$VENV/bin:"/}:/usr/sbin:/sbin" PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

# usage "$0" "$@": with --help or -h, prints the comment at the top of the script and ends.
usage() {
    local script=$1 argument
    shift
    for argument in "$@"; do
        case $argument in -h | --help)
            sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$script"
            exit 0
            ;;
        esac
    done
}

step() {  # step "what happens now" ["what to do when it fails"]
    STEP=$1 REMEDY=${2:-read the lines above}
    printf '== %s\n' "$STEP"
}

failed() { printf '\nFAILED: %s (%s)\n' "$STEP" "$REMEDY"; }

on_exit() {
    local status=$? running
    running=$(jobs -p)
    # shellcheck disable=SC2086
    [ -z "$running" ] || kill $running 2>/dev/null || true
    [ "$status" -eq 0 ] || [ -n "${REPORTED:-}" ] || failed
    exit "$status"
}
trap on_exit EXIT
# Not the fault of the step: Ctrl-C reaches its program too, whose complaint may come first.
interrupted() {
    REPORTED=yes
    printf '\nFAILED: interrupted while %s (run the command again; it goes on where it can)\n' "$STEP"
    exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

die() { REMEDY=$1; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
num_jobs() { nproc 2>/dev/null || echo 2; }

# Prints the hash of its arguments and of the contents of those that are files.
stamp_of() { { printf '%s\n' "$@"; for f in "$@"; do [ ! -f "$f" ] || cat "$f"; done; } | sha256sum | cut -d' ' -f1; }

# A Python that can make a virtual environment and compile an extension: 3.10 or newer, ensurepip, Python.h.
usable_python() {
    "$1" - <<'PY' 2>/dev/null
import ensurepip, os, sys, sysconfig, venv
include = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(0 if sys.version_info >= (3, 10) and os.path.exists(include) else 1)
PY
}

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
        if have "$name" && usable_python "$name"; then command -v "$name"; return 0; fi
    done
    return 1
}

# The Python of .venv, where it works and was made at this place, whatever comes first on PATH now; else one that can
# make it.
base_python() {
    local python=$VENV/bin/python
    if grep -qsF "$VENV" "$VENV/bin/activate" && usable_python "$python" && "$python" -m pip -V >/dev/null 2>&1; then
        printf '%s\n' "$python"
    else
        find_python
    fi
}

compiles() { printf '#include <%s>\nint main() {}\n' "$1" | g++ -std=c++20 -x c++ -fsyntax-only - 2>/dev/null; }

missing_packages() {
    have g++ && compiles concepts || echo g++
    { have g++ && compiles fmt/format.h; } || echo libfmt-dev
    find_python >/dev/null || printf '%s\n' python3 python3-venv python3-dev
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif have sudo && sudo -n true 2>/dev/null; then sudo -n "$@"
    elif have sudo && [ -t 0 ]; then sudo "$@"
    else return 1; fi
}

ensure_system() {
    local missing
    missing=$(missing_packages | paste -sd' ')
    [ -n "$missing" ] || return 0
    step "installing Debian packages: $missing" "as root: apt-get install $missing"
    have apt-get || die "this machine has no apt-get; install the equivalents of: $missing"
    if ! as_root true; then
        [ "$missing" != libfmt-dev ] || { echo "no root here: CMake will fetch fmt itself"; return 0; }
        die "installing needs root: run 'apt-get install $missing' as root, then this command again"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
    missing=$(missing_packages | paste -sd' ')
    [ -z "$missing" ] || die "still missing after installation: $missing (Python 3.10+ and a C++20 g++ are needed)"
}

# make_venv PYTHON: a new one, unless PYTHON is that of the environment, whose packages stay. A link to an environment
# elsewhere is not ours to clear.
make_venv() {
    [ "$1" != "$VENV/bin/python" ] || return 0
    step "creating .venv with $("$1" -V) ($1)" "remove .venv and try again"
    [ ! -L "$VENV" ] || die ".venv is a link to $(readlink "$VENV"), expected a folder of this checkout: remove the link"
    "$1" -m venv --clear "$VENV"
}

# ensure_venv run|test: the virtual environment with the wheels of tools/requirements-*.txt, first on PATH.
ensure_venv() {
    local base stamp sets=(-r tools/requirements-run.txt) quiet=(-q --progress-bar off)
    [ "$1" = run ] || sets+=(-r tools/requirements-test.txt)
    [ ! -t 1 ] || quiet=()
    base=$(base_python)
    stamp=$(stamp_of "$VENV" "$("$base" -VV)" tools/requirements-run.txt tools/requirements-test.txt)
    # The test set holds the run set, so an environment made for the tests serves the demo too.
    if [ "$(cat "$VENV/stamp-test" 2>/dev/null)" != "$stamp" ] && [ "$(cat "$VENV/stamp-$1" 2>/dev/null)" != "$stamp" ]; then
        # One made for the demo grows into one for the tests.
        if [ "$(cat "$VENV/stamp-run" 2>/dev/null)" != "$stamp" ]; then
            make_venv "$base"
        fi
        step "installing wheels into .venv: ${sets[*]}" "pip must reach the Python package index (its own settings apply)"
        # Half of its time would go to bytecode, most of it for modules that nothing imports; Python makes what it needs.
        "$VENV/bin/python" -m pip install --no-compile "${quiet[@]}" "${sets[@]}"
        printf '%s\n' "$stamp" >"$VENV/stamp-$1"
    fi
    export PATH="$VENV/bin:$PATH"
}

# The level of x86-64 that the emulator gains from, where this machine has it; what is built here runs here.
cpu_level() {
    local flag
    for flag in avx2 bmi1 bmi2 f16c fma abm movbe; do
        grep -qsw "^flags.*$flag" "${CPUINFO:-/proc/cpuinfo}" || return 0
    done
    echo x86-64-v3
}

# ensure_built [extra CMake arguments]: the extension module beside the Python sources, and an editable install.
ensure_built() {
    local stamp
    BUILD_DIR=$TOP/build/$(python -c 'import sys; print(sys.implementation.cache_tag)')
    step "building the extension module with $(num_jobs) jobs in ${BUILD_DIR#"$TOP"/}" "the compiler's message is above"
    mkdir -p "$BUILD_DIR"
    local settings=(env DG_BUILD_DIR="$BUILD_DIR" DG_CMAKE_ARGS="-DDG_CPU=$(cpu_level) $*" NINJA_STATUS="[%f/%t, %e s] ")
    "${settings[@]}" python setup.py -q build_ext --inplace
    stamp=$(stamp_of "$TOP" "$(python -VV)" setup.py pyproject.toml CMakeLists.txt)
    if [ "$(cat "$VENV/stamp-install" 2>/dev/null)" != "$stamp" ]; then
        step "installing deep-gemm-jit into .venv (editable)"
        "${settings[@]}" python -m pip install -q --no-build-isolation --no-deps -e .
        printf '%s\n' "$stamp" >"$VENV/stamp-install"
    fi
}
