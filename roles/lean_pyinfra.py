"""Spare work of pyinfra 3.10 whose result nothing uses. Importing this module is enough.

pyinfra orders operations by the lines of their callers. It asks ``inspect`` for them, which also finds and reads the
source of each caller. And it works out the types of its global arguments again for every operation and every fact.
"""

from __future__ import annotations

import functools
import inspect

from pyinfra.api import arguments, util

# The 0 is the number of source lines to read.
util.stack = functools.partial(inspect.stack, 0)
util.getframeinfo = functools.partial(inspect.getframeinfo, context=0)
arguments.get_type_hints = functools.cache(arguments.get_type_hints)  # type: ignore[assignment]
