#!/usr/bin/env bash
# Copies what the portal uses of others into web/vendor, as scripts/web/package-lock.json pins it: uPlot, with its licence and its hashes.
# Another version: change scripts/web/package.json, run npm install --package-lock-only there, then this.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup_web.sh"
from="$root/scripts/web/node_modules/uplot" to="$root/web/vendor/uplot"
mkdir -p "$to"
cp "$from/dist/uPlot.esm.js" "$from/dist/uPlot.min.css" "$from/LICENSE" "$from/package.json" "$to/"
cd "$to"
sha256sum LICENSE package.json uPlot.esm.js uPlot.min.css >SHA256SUMS
