"""Python imports this as it starts, in every process of a contestant that is measured with another setting of its garbage collector; see `with_collector`."""

import gc
import os


def _nothing(*_: object) -> None:
    """What the contestant itself says of the collector is not heard."""


if os.environ.get("COLLECTOR") == "off":
    gc.disable()
if "COLLECTOR" in os.environ:
    gc.enable = gc.disable = gc.freeze = gc.set_threshold = _nothing
