"""One line an event, for people and for log collectors: time, level, where, what. Never a secret."""

from __future__ import annotations

import logging
import sys
import time


class _OneLine(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def log_to_stderr() -> None:
    """Send natskit's logs, and warnings of everybody else, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("natskit").setLevel(logging.INFO)
