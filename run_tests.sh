#!/usr/bin/env bash
# Everything that must hold: format, lint, types, imports, the agent's Python 3.9, then pytest. Sets itself up.
#   ./run_tests.sh                       all of it (as root with the fleet of real sshd hosts)
#   ./run_tests.sh tests/unit -k config  pytest alone, with these arguments
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
cd "$root"

# Programs the tests use: "what to look for|Debian package|what for".
needed=(
    'sshd|openssh-server|the test hosts of tests/fleet'
    'chromium|chromium-headless-shell|tests/browser'
    'noto-cjk|fonts-noto-cjk|Chinese in the browser tests'
    'ip|iproute2|the network of tests/fleet'
    'dropbear|dropbear-bin|the other SSH server'
    'sudo|sudo|agents that another user owns'
    'openssl|openssl|log-ins by password'
    'pypy3|pypy3|running the agent on a Python 3.9'
    'curl|curl|the documented curl lines'
    'rsync|rsync|bringing code the quick way'
    'postgresql|postgresql|the store of several managers'
    'podman|podman|workers in containers'
    'conmon|conmon|workers in containers'
    'runc|runc|workers in containers'
    'node|nodejs|bundling the portal'
    'npm|npm|bundling the portal'
)

# The tests use the engine alone (a third of the processor time); where Debian's package is not to be had, the browser.
has_browser() {
    command -v chromium-headless-shell >/dev/null && return
    can_install chromium-headless-shell && return 1
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-cache >/dev/null && apt-cache show "$1" >/dev/null 2>&1; }

has() {
    case $1 in
    sshd) [ -x /usr/sbin/sshd ] || command -v sshd >/dev/null ;;
    chromium) has_browser ;;
    postgresql) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ;;
    noto-cjk) compgen -G '/usr/share/fonts/opentype/noto/NotoSansCJK*' >/dev/null || { command -v fc-list >/dev/null && fc-list | grep -qi 'cjk'; } ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# Debian starts a service as soon as it is installed; the tests want sshd's program, not a new open port.
apt_install() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
)

install_missing() {
    local entry program package purpose packages=() purposes=()
    for entry in "${needed[@]}"; do
        IFS='|' read -r program package purpose <<<"$entry"
        has "$program" && continue
        packages+=("$package")
        purposes+=("$package ($purpose)")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        in_language "run_tests: installing ${purposes[*]}" "run_tests：正在安装 ${purposes[*]}" >&2
        apt-get update -qq || in_language "run_tests: apt-get update failed; trying with the existing package lists" \
            "run_tests：apt-get update 失败；使用现有的软件包列表" >&2
        can_install chromium-headless-shell || packages=("${packages[@]/#chromium-headless-shell/chromium}")
        apt_install "${packages[@]}" || {
            in_language "run_tests: could not install; run: apt-get install ${packages[*]}" \
                "run_tests：无法安装；请运行：apt-get install ${packages[*]}" >&2
            exit 1
        }
    else
        in_language "run_tests: missing: ${purposes[*]}; tests that need them are skipped. To install them: sudo apt-get install ${packages[*]}" \
            "run_tests：缺少：${purposes[*]}；需要它们的测试会跳过。安装：sudo apt-get install ${packages[*]}" >&2
    fi
}

. "$root/scripts/setup_venv.sh" dev
install_missing
scripts/setup_web.sh || in_language "run_tests: tests of the bundled portal are skipped (in CI they fail)" \
    "run_tests：跳过打包门户的测试（在 CI 中会失败）" >&2
# Everything a test writes lands in one folder that is gone afterwards, and so do the caches and settings that a browser
# or a checker would make in the user's home.
scratch=$("$procguard_python" scripts/scratch.py)
trap 'kill $(jobs -p) 2>/dev/null || :; wait; rm -rf "$scratch"' EXIT
export TMPDIR="$scratch" XDG_CACHE_HOME="$scratch/cache" XDG_CONFIG_HOME="$scratch/config" XDG_DATA_HOME="$scratch/data"
unset PYTHONDONTWRITEBYTECODE # the tests start Python a thousand times; byte code makes each start faster
if [ $# -gt 0 ]; then
    "$procguard_python" -m pytest --basetemp "$scratch/p" "$@"
    exit
fi
# Files run in parallel, more of them than there are cores, because most tests wait. Browser tests run beside the others,
# in a network of their own: Chromium aborts requests when a network interface appears or disappears
# (ERR_NETWORK_CHANGED), as with each test host.
# Tests with a bound in seconds run afterwards, one after another, or three at a time if they mostly wait; the static
# checks run beside those at the lowest priority. tests/conftest.py runs the longest files first, because a phase ends
# with its last file.
tests=0
static=0 # a failed check does not keep the tests from running: one run shows everything
run() { "$procguard_python" -m pytest --basetemp "$scratch/p" "$@" || tests=$?; }
spread=(--max-worker-restart=3 --dist=loadfile --no-loadscope-reorder --durations=25)
own_network=()
if unshare --net true 2>/dev/null; then # as root; others have no test hosts
    own_network=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh)
fi
"${own_network[@]}" "$procguard_python" -m pytest --basetemp "$scratch/b" -n 2 "${spread[@]}" tests/browser \
    >"$scratch/browser" 2>&1 &
browser=$!
run -n 6 "${spread[@]}" tests --ignore=tests/browser -m 'not alone and not few'
wait $browser || tests=$?
cat "$scratch/browser"
nice -n 19 "$procguard_python" scripts/dev_tasks.py static >"$scratch/static" 2>&1 &
static_checks=$!
run -n 3 "${spread[@]}" tests/fleet -m few --dist=load
wait $static_checks || static=$?
cat "$scratch/static"
run tests/fleet -m alone
if [ "$tests" != 0 ]; then exit "$tests"; fi
if [ "$static" != 0 ]; then in_language "run_tests: the tests passed, but a check above FAILED" "run_tests：测试通过，但上面有检查失败" >&2; fi
exit "$static"
