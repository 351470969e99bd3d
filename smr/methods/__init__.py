"""Methods by name. A method is one file: what each epoch trains, its flags, its state.

To add one, write a subclass of `Method` in a module of its own and name it in `METHODS`.
"""

from smr.methods.base import Method, TrainedEpoch
from smr.methods.cross_entropy import CrossEntropy
from smr.methods.dividemix import DivideMix
from smr.methods.elr import ELR
from smr.methods.smr import SMR

METHODS: dict[str, type[Method]] = {
    "smr": SMR,
    "dividemix": DivideMix,
    "ce": CrossEntropy,
    "elr": ELR,
}

__all__ = [
    "ELR",
    "METHODS",
    "SMR",
    "CrossEntropy",
    "DivideMix",
    "Method",
    "TrainedEpoch",
    "new_method",
]


def new_method(config, pair, loader, log=None) -> Method:
    """The method that the configuration names, for these two networks and this loader."""
    return METHODS[config.method](config, pair, loader, log)
