# shellcheck shell=bash
# Sourced by start_manager.sh, start_worker.sh and run_tests.sh:   . "$root/scripts/setup_venv.sh" runtime|dev
#
# Afterwards $procguard_python is the interpreter of a virtual environment (.venv in the checkout) that holds exactly
# what requirements/runtime.lock (or dev.lock) pins. Makes or updates it only where the lock's checksum or the
# checkout's place changed; the check itself starts no Python. Nothing is exported: a worker's child must not see us.

procguard_say() { # $1 English, $2 Chinese
    printf 'procguard: %s\n' "$(in_language "$1" "$2")" >&2
}

procguard_fail() {
    procguard_say "$@"
    exit 1
}

# True where .venv holds what `$1` (runtime or dev) needs: the stamp names the lock's checksum and this very place.
procguard_venv_fresh() {
    local stamp="$procguard_venv/procguard-$1.stamp" have=""
    [ -x "$procguard_venv/bin/python" ] && [ -r "$stamp" ] || return 1
    have=$(<"$stamp")
    [ "$have" = "$(procguard_stamp_text "$1")" ]
}

procguard_stamp_text() {
    local sum
    sum=$(sha256sum <"$procguard_root/requirements/$1.lock") || return 1
    printf '%s %s' "${sum%% *}" "$procguard_root"
}

procguard_python_is() { # $1 interpreter, $2 least minor, $3 most minor
    "$1" -I -c "import sys; sys.exit(not ((3, $2) <= sys.version_info[:2] <= (3, $3)))" >/dev/null 2>&1
}

# Print a Python 3.11 or newer. Those with ready-made packages in the lock (to 3.13) come first.
procguard_find_python() {
    local most candidate
    local candidates=(python3 python3.13 python3.12 python3.11
        /usr/bin/python3 /usr/bin/python3.1[1-9] /usr/local/bin/python3 /usr/local/bin/python3.1[1-9]
        /opt/homebrew/bin/python3 "${HOME:-/nonexistent}"/.pyenv/versions/3.1[1-9]*/bin/python3
        "${HOME:-/nonexistent}"/.local/bin/python3.1[1-9])
    if [ -n "${PROCGUARD_PYTHON:-}" ]; then
        procguard_python_is "$PROCGUARD_PYTHON" 11 99 || return 1
        command -v "$PROCGUARD_PYTHON"
        return
    fi
    for most in 13 99; do
        for candidate in "${candidates[@]}"; do
            candidate=$(command -v "$candidate" 2>/dev/null) || continue
            [ "${candidate%/*}" != "$procguard_venv/bin" ] || continue # active in this shell, and about to be remade
            if procguard_python_is "$candidate" 11 "$most"; then
                printf '%s\n' "$candidate"
                return
            fi
        done
    done
    return 1
}

# Debian and Ubuntu ship Python without the module that makes environments.
procguard_need_ensurepip() { # $1 interpreter
    local package
    [ -z "$procguard_uv" ] || return 0 # it needs neither module
    "$1" -I -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    package="python$("$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    command -v apt-get >/dev/null 2>&1 ||
        procguard_fail "$1 cannot make virtual environments (no module ensurepip); install your system's package for it, or name another Python: PROCGUARD_PYTHON=/path/to/python3 $0" \
            "$1 无法创建虚拟环境（缺少模块 ensurepip）；请安装系统中对应的软件包，或指定另一个 Python：PROCGUARD_PYTHON=/path/to/python3 $0"
    [ "$(id -u)" = 0 ] ||
        procguard_fail "$1 cannot make virtual environments; run: sudo apt-get install $package" \
            "$1 无法创建虚拟环境；请运行：sudo apt-get install $package"
    procguard_say "installing $package (this Python cannot make virtual environments without it)" \
        "正在安装 $package（没有它，此 Python 无法创建虚拟环境）"
    { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package"; }; } >/dev/null ||
        procguard_fail "could not install $package; run: apt-get update && apt-get install $package" \
            "无法安装 $package；请运行：apt-get update && apt-get install $package"
}

procguard_make_venv() {
    local base version
    base=$(procguard_find_python) ||
        procguard_fail "no Python 3.11 or newer found${PROCGUARD_PYTHON:+ at PROCGUARD_PYTHON=$PROCGUARD_PYTHON}; install one (Debian 12, Ubuntu 24.04: sudo apt-get install python3 python3-venv), or name it: PROCGUARD_PYTHON=/path/to/python3 $0" \
            "没有找到 Python 3.11 或更高版本${PROCGUARD_PYTHON:+（PROCGUARD_PYTHON=$PROCGUARD_PYTHON）}；请安装（Debian 12、Ubuntu 24.04：sudo apt-get install python3 python3-venv），或指定：PROCGUARD_PYTHON=/path/to/python3 $0"
    procguard_need_ensurepip "$base"
    version=$("$base" -I -c 'import platform; print(platform.python_version())')
    procguard_say "making $procguard_venv with Python $version ($base); once" \
        "正在用 Python $version（$base）创建 $procguard_venv；仅此一次"
    if [ -e "$procguard_venv" ] && [ ! -e "$procguard_venv/pyvenv.cfg" ] && [ -n "$(ls -A "$procguard_venv")" ]; then
        procguard_fail "$procguard_venv exists and is no virtual environment; move it away and run this again" \
            "$procguard_venv 已存在，但不是虚拟环境；请移走它，然后重新运行"
    fi
    if [ -n "$procguard_uv" ]; then
        "$procguard_uv" venv --quiet --clear --no-project --no-config --python "$base" "$procguard_venv"
    else
        "$base" -I -m venv --clear --without-pip "$procguard_venv"
    fi || procguard_fail "could not make $procguard_venv with $base; see the lines above" \
        "无法用 $base 创建 $procguard_venv；请看上面的输出"
}

# uv, where it is there, takes seconds where pip takes most of a minute; both take exactly what the lock pins. Neither
# compiles: of these packages a start imports a fifth, and compiles that by itself.
procguard_install() { # $1 runtime|dev
    if [ -n "$procguard_uv" ]; then
        "$procguard_uv" pip install --quiet --no-config --python "$procguard_venv/bin/python" --no-deps --require-hashes \
            -r "$procguard_root/requirements/$1.lock"
    else
        PIP_USER=0 "$procguard_venv/bin/python" -I "$procguard_root/scripts/bundled_pip.py" install --disable-pip-version-check \
            --no-input --quiet --no-compile --no-deps --require-hashes -r "$procguard_root/requirements/$1.lock"
    fi
}

procguard_can_install() {
    if [ -n "$procguard_uv" ]; then
        "$procguard_venv/bin/python" -I -c '' >/dev/null 2>&1
    else
        "$procguard_venv/bin/python" -I -c 'import ensurepip' >/dev/null 2>&1
    fi
}

# Under the lock: make .venv where it is missing, broken or moved, then install what the lock file pins.
procguard_update_venv() { # $1 runtime|dev
    local kind=$1 log stamp had_place=""
    # An environment made for development stays one: dev.lock holds everything that runtime.lock does.
    [ -e "$procguard_venv/procguard-dev.stamp" ] && kind=dev
    for stamp in "$procguard_venv"/procguard-*.stamp; do
        [ -r "$stamp" ] && had_place=$(<"$stamp") && had_place=${had_place#* }
    done
    if [ -n "$had_place" ] && [ "$had_place" != "$procguard_root" ]; then
        procguard_say "this checkout was at $had_place before; .venv has to be recreated" \
            "此仓库原先位于 $had_place；需要重新创建 .venv"
        procguard_make_venv
    elif ! procguard_can_install; then
        procguard_make_venv
    fi
    rm -f "$procguard_venv"/procguard-*.stamp
    procguard_say "installing what requirements/$kind.lock pins (hashes checked)" \
        "正在安装 requirements/$kind.lock 锁定的依赖（校验哈希）"
    log=$(mktemp "${TMPDIR:-/tmp}/procguard-pip.XXXXXX")
    if ! procguard_install "$kind" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        procguard_fail "could not install requirements/$kind.lock; is the package index reachable (pip's settings, proxy)? Then run this again" \
            "无法安装 requirements/$kind.lock；能否连接软件包索引（pip 的设置、代理服务器）？请解决后重新运行"
    fi
    rm -f "$log"
    # The checkout itself, for `invoke` and `python -m procguard.…` from any directory and without PYTHONPATH, which
    # every worker's child would inherit.
    printf '%s\n' "$procguard_root" >"$("$procguard_venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/procguard-checkout.pth"
    procguard_stamp_text runtime >"$procguard_venv/procguard-runtime.stamp"
    if [ "$kind" = dev ]; then procguard_stamp_text dev >"$procguard_venv/procguard-dev.stamp"; fi
}

procguard_setup_venv() { # $1 runtime|dev
    local lock_fd
    if ! procguard_venv_fresh "$1"; then
        [ -w "$procguard_root" ] ||
            procguard_fail "$procguard_root/.venv is not set up and $(id -un) may not write there; run ./start_manager.sh once as its owner" \
                "$procguard_root/.venv 尚未准备好，而 $(id -un) 无权写入该目录；请以其属主运行一次 ./start_manager.sh"
        if command -v flock >/dev/null 2>&1; then
            exec {lock_fd}<"$procguard_root"
            flock -n "$lock_fd" || {
                procguard_say "another start is setting up .venv; waiting for it" "另一次启动正在准备 .venv；正在等待"
                flock "$lock_fd"
            }
        fi
        # A start before this one may have done it meanwhile.
        procguard_venv_fresh "$1" || procguard_update_venv "$1"
        if [ -n "${lock_fd:-}" ]; then exec {lock_fd}<&-; fi
    fi
    procguard_python="$procguard_venv/bin/python"
}

procguard_root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
procguard_venv="$procguard_root/.venv"
. "$procguard_root/scripts/language.sh"
# PROCGUARD_UV names it; if it is set and empty, pip is used.
procguard_uv=${PROCGUARD_UV-$(command -v uv || true)}
procguard_setup_venv "${1:?setup_venv.sh: runtime or dev}"
