"""DivideMix, the baseline that SMR extends (Li, Socher, Hoi, ICLR 2020; method 6)."""

from typing import ClassVar

from smr.methods.smr import SMR


class DivideMix(SMR):
    """SMR without its two parts: the warm-up is CE, and no epoch recalibrates."""

    NAME = "dividemix"
    DEFAULTS: ClassVar = {"warmup_loss": "ce", "recalibrate_every": 0}
