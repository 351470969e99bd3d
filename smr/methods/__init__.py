"""Methods by name. A method is one file: what each epoch trains, its flags, its state.

To add one, write a subclass of `Method` with a NAME in a new module of this package.
"""

import importlib
import pkgutil

from smr.methods.base import Method, TrainedEpoch
from smr.methods.smr import SMR

__all__ = ["METHODS", "SMR", "Method", "TrainedEpoch", "new_method"]


def named_methods() -> dict[str, type[Method]]:
    """Name → class, of each `Method` with a NAME in this package; SMR, the default, first."""
    methods = {SMR.NAME: SMR}
    for module in pkgutil.iter_modules(__path__):
        for each in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(each, type) and issubclass(each, Method) and each.NAME:
                methods[each.NAME] = each
    return methods


METHODS = named_methods()


def new_method(config, pair, loader, log=None) -> Method:
    """The method that the configuration names, for these two networks and this loader."""
    return METHODS[config.method](config, pair, loader, log)
