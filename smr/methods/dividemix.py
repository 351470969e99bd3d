"""DivideMix, the baseline that SMR extends (Li, Socher, Hoi, ICLR 2020; method 6)."""

from dataclasses import dataclass

from smr.config import flag
from smr.methods.smr import SMR


class DivideMix(SMR):
    """SMR without its two parts: the warm-up is CE, and no epoch recalibrates."""

    @dataclass
    class Flags(SMR.Flags):
        """SMR's flags with DivideMix's values."""

        warmup_loss: str = flag("ce", choices=("mixup", "ce"), help="loss of the warm-up")
        recalibrate_every: int = flag(0, low=0, metavar="K", help="0 for never")
