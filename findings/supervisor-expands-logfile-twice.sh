#!/bin/bash
# Expected: in supervisord's configuration %% stands for one percent sign, in every option that knows %(here)s and
#   similar names, as its manual says: the folder "100%" is written "100%%".
# Seen: stdout_logfile and stderr_logfile of a program are expanded twice. "100%%" is refused as badly formatted, and
#   "100%%%%" stands for the folder "100%". In directory, command and the options of [supervisord] it is "100%%".
# Version: supervisor 4.3.0
# Why it matters: a generated configuration that escapes each value in the same way works until a path has a percent
#   sign. Then `supervisorctl update` fails for the other programs too.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check supervisor==4.3.0 'setuptools<81'
"$folder/venv/bin/supervisord" --version
mkdir "$folder/100%"

# What supervisord reads, or its complaint, with so many percent signs in the name of the log's folder.
log_file() {
  printf '[supervisord]\ndirectory = %s/100%%%%\n[program:a]\ncommand = /bin/cat\nstdout_logfile = %s/100%s/a.log\n' \
    "$folder" "$folder" "$1" >"$folder/supervisord.conf"
  "$folder/venv/bin/python" -W ignore - "$folder/supervisord.conf" 2>&1 <<'PYTHON'
import sys
from supervisor.options import ServerOptions

options = ServerOptions()
options.realize(["-c", sys.argv[1]])
print(options.process_group_configs[0].process_configs[0].stdout_logfile)
PYTHON
}

twice=$(log_file '%%' || true) four=$(log_file '%%%%' || true)
echo "stdout_logfile = …/100%%/a.log:   ${twice##*Error: }"
echo "stdout_logfile = …/100%%%%/a.log: ${four}"
case $twice in *"badly formatted"*) ;; *) exit 1 ;; esac
[ "$four" = "$folder/100%/a.log" ]
