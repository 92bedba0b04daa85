"""Names and numbers of signals, as in a shell: ``SIGTERM``, ``SIGRTMIN+1``, and 128 + the number as exit code.

Projects run on Linux. A caller may run on another system, where a signal of the same name has another number.
"""

from __future__ import annotations

import re
import signal

SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a command."""


def signal_name(number: int) -> str:
    """The name that ``kill -l`` has for a signal; ``SIG`` and the number if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        if signal.SIGRTMIN < number < signal.SIGRTMAX:
            return f"SIGRTMIN+{number - signal.SIGRTMIN}"
        return f"SIG{number}"


def signal_number(name: str) -> int | None:
    """The number that a name from :func:`signal_name` has on this machine; ``None`` if it names no signal."""
    if name in signal.Signals.__members__:
        return signal.Signals[name].value
    found = re.fullmatch(r"SIG(?:(RTMIN)\+)?(\d{1,3})", name)
    if found is None:
        return None
    return int(found[2]) + (signal.SIGRTMIN if found[1] else 0)
