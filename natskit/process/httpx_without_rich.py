"""Import httpx without its command line, before anything else does.

httpx 0.28 imports its own command line, and with it rich and pygments, where these are installed, as on every control
machine. Only programs of natskit import this module, never the client that other programs use. See
findings/httpx-imports-its-command-line.sh.
"""

from __future__ import annotations

from natskit.process.lean_import import import_without

import_without("httpx", "httpx._main")
