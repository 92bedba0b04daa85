#!/bin/bash
# Expected: `nats rtt` measures the round trip to the servers. When it reaches none of them it fails, and its exit code
#   says so, as that of `nats pub` does.
# Seen: it prints "Failed to compute rtt ..." and "failed" for the server, and exits with 0. `nats pub` to the same
#   address exits with 1.
# Version: nats 0.5.0 (github.com/nats-io/natscli)
# Why it matters: `nats rtt && deploy`, or a health check that runs it, goes on although no client can connect.
set -eu -o pipefail
folder=$(mktemp -d)
clean_up() {
  chmod -R u+w "$folder"
  rm -rf "$folder"
}
trap clean_up EXIT
GOBIN=$folder go install github.com/nats-io/natscli/nats@v0.5.0
"$folder/nats" --version
# A free port on which nobody listens once the socket is closed.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
ask() {
  HOME=$folder XDG_CONFIG_HOME=$folder timeout 30 "$folder/nats" --no-context --server "nats://127.0.0.1:$port" "$@" >"$folder/said" 2>&1 &&
    code=0 || code=$?
  sed 's/^/  /' "$folder/said" | sed "s/$port/PORT/g" | head -n 4
  echo "nats $1: exit code $code"
}
ask pub subject body
pub=$code
ask rtt
[ "$pub" != 0 ] && [ "$code" = 0 ] || { echo "the behaviour has changed"; exit 1; }
