#!/bin/sh
# Makes crates/server/src/web/vendor of the packages that package.json pins: run it when they change, commit the result.
set -eu
cd "$(dirname "$0")"
npm ci --ignore-scripts --no-audit --no-fund --silent
vendor=../../crates/server/src/web/vendor
mkdir -p "$vendor"
npx esbuild renderers.js --bundle --minify --format=esm --target=es2022 --legal-comments=none --charset=ascii \
    --log-level=warning --outfile="$vendor/renderers.js"
node styles.js node_modules/temml/dist/Temml-Local.css | npx esbuild --loader=css --minify --log-level=warning \
    > "$vendor/math.css"
node licences.js > "$vendor/LICENCES.txt"
ls -l "$vendor"
