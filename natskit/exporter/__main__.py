"""``python -m natskit.exporter --settings FILE``: the exporter of one host, until SIGTERM.

SIGHUP loads the certificate again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from natskit.errors import NatskitError, SettingsError
from natskit.exporter.collect import Exporter
from natskit.exporter.config import ExporterProgram
from natskit.process import core_dumps
from natskit.process.lifecycle import log_to_stderr, read_settings, until_stopped
from natskit.process.metrics_endpoint import MetricsEndpoint
from natskit.process.sd_notify import tell_systemd

log = logging.getLogger("natskit.exporter")


def main() -> int:
    """Read the settings and run until told to stop."""
    core_dumps.forbid()
    log_to_stderr()
    parser = argparse.ArgumentParser(prog="python -m natskit.exporter", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    try:
        asyncio.run(serve(read_settings(parser.parse_args().settings, ExporterProgram)))
    except NatskitError as error:
        print(f"natskit exporter: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(program: ExporterProgram) -> None:
    """Run until SIGTERM or SIGINT. Raises :class:`SettingsError`."""
    endpoint = MetricsEndpoint(program.access, Exporter(program).text)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _renew, endpoint)
    await until_stopped(endpoint.start(), endpoint.close, started=_say_ready)


def _say_ready() -> None:
    log.info("ready")
    tell_systemd("READY=1")


def _renew(endpoint: MetricsEndpoint) -> None:
    try:
        endpoint.renew()
    except SettingsError as error:
        log.error("the old certificate stays in use: %s", error)


if __name__ == "__main__":
    sys.exit(main())
