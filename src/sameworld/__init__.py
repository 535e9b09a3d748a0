"""sameworld: the world a model is trained in and the world it is served in are the same world, provably."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sameworld.definitions.availability import at_event_time, daily, delay
from sameworld.definitions.fallbacks import Constant, LastKnown, Popular, Rate, Rule, Smaller, Without
from sameworld.definitions.feature import derive, field
from sameworld.definitions.label import Label
from sameworld.definitions.model import Model, Service
from sameworld.definitions.moments import Moments
from sameworld.definitions.ranking import Ranking
from sameworld.definitions.source import Source
from sameworld.definitions.windows import ahead
from sameworld.errors import SameworldError

if TYPE_CHECKING:
    from sameworld.training.batches import training_batches
    from sameworld.training.fit import train
    from sameworld.training.training_set import training_set
    from sameworld.training.write import write_training_set

__version__ = "0.1.0"

__all__ = [
    "Constant",
    "Label",
    "LastKnown",
    "Model",
    "Moments",
    "Popular",
    "Ranking",
    "Rate",
    "Rule",
    "SameworldError",
    "Service",
    "Smaller",
    "Source",
    "Without",
    "ahead",
    "at_event_time",
    "daily",
    "delay",
    "derive",
    "field",
    "train",
    "training_batches",
    "training_set",
    "write_training_set",
]

# These bring an engine and a compiler with them, so they load on first use: `sameworld --help` needs neither.
_LATER = {
    "train": "sameworld.training.fit",
    "training_batches": "sameworld.training.batches",
    "training_set": "sameworld.training.training_set",
    "write_training_set": "sameworld.training.write",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'sameworld' has no attribute {name!r}")
