#!/usr/bin/env bash
# Installs what scripts/web/package-lock.json pins, hashes checked, no install scripts run: esbuild, which bundles the portal for a wheel.
# Does nothing where that is there already. Exit code 1, and one line, where it cannot.
set -euo pipefail
web=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/web" && pwd -P)
. "$web/../language.sh"
stamp="$web/node_modules/.procguard-lock"
cmp -s "$web/package-lock.json" "$stamp" && exit 0
for program in node npm; do
    command -v "$program" >/dev/null || {
        in_language "setup_web: bundling the portal needs $program; install nodejs and npm, then run this again" \
            "setup_web：打包门户需要 $program；请安装 nodejs 和 npm，然后重新运行" >&2
        exit 1
    }
done
log=$(mktemp "${TMPDIR:-/tmp}/procguard-npm.XXXXXX")
trap 'rm -f "$log"' EXIT
npm ci --ignore-scripts --no-audit --no-fund --prefix "$web" >"$log" 2>&1 || {
    cat "$log" >&2
    in_language "setup_web: could not install what scripts/web/package-lock.json pins; is npm's registry reachable (npm's settings, proxy)? Then run this again" \
        "setup_web：无法安装 scripts/web/package-lock.json 锁定的依赖；能否连接 npm 的软件源（npm 的设置、代理服务器）？请解决后重新运行" >&2
    exit 1
}
cp "$web/package-lock.json" "$stamp"
