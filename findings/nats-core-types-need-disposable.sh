#!/bin/bash
# Expected: a strict TypeScript program for browsers (lib ES2022 and DOM) that imports a package made for browsers
#   type-checks; the package's own declarations reference every library that they need.
# Seen: TS2550 in node_modules/@nats-io/nats-core: the declarations use Symbol.asyncDispose, which only the library
#   "esnext.disposable" declares. With that library added, or with skipLibCheck, the same program passes.
# Version: @nats-io/nats-core 3.4.0, typescript 5.9.3
# Why it matters: a site that type-checks its dependencies, as strict projects do, sees errors in
#   other people's files, and TypeScript's hint (the library "esnext") adds far more than is missing.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{ "private": true, "type": "module" }' >package.json
npm install --silent --no-audit --no-fund --save-exact @nats-io/nats-core@3.4.0 typescript@5.9.3 >/dev/null 2>&1
node -p '"@nats-io/nats-core " + JSON.parse(require("fs").readFileSync("node_modules/@nats-io/nats-core/package.json")).version'
npx tsc --version
echo 'import { wsconnect } from "@nats-io/nats-core"; export const connection = wsconnect({ servers: "wss://example.org" });' >probe.ts
check() {
  npx tsc --noEmit --strict --target es2022 --module nodenext --moduleResolution nodenext --lib "$1" probe.ts 2>&1 || true
}
plain=$(check es2022,dom)
more=$(check es2022,dom,esnext.disposable)
echo "lib es2022,dom: $(grep -c TS2550 <<<"$plain" || true) errors TS2550"
grep -m 1 TS2550 <<<"$plain" || true
echo "with esnext.disposable: $(grep -c 'error TS' <<<"$more" || true) errors"
grep -q 'TS2550.*asyncDispose' <<<"$plain" && [ -z "$more" ] || { echo "the behaviour has changed"; exit 1; }
