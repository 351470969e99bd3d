"""One configuration: a dataclass whose fields are the flags and config.json.

A script derives its own from `Config` and adds the flags of its data; a method brings the flags of
the method. A field that is None after that takes its value from the script's hyperparameters.
"""

import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from smr import devices, distributed
from smr.errors import InputError
from smr.flags import (
    DATA,
    DEVICE,
    FREE,
    GROWS,
    ON_OFF,
    RUN,
    SAME,
    SPEED,
    TRAINING,
    checked,
    flag,
    flags_of,
    shown,
)

DEVICES = ("auto", "cuda", "cpu", "mps")


@dataclass
class Config:
    """The flags of every run. Raises InputError if a value is out of range.

    Epochs count from 0 to num_epochs inclusive (method 3). Class attributes have no flag.
    """

    method: str = flag("training method (docs/method.md, sections 6 and 12)", default="smr")

    num_epochs: int = flag(
        "number of the last epoch; epoch 0 is trained too", TRAINING, low=0, resume=GROWS
    )
    batch_size: int = flag(
        "B, images per labeled and per unlabeled batch; a warm-up batch has 2B", TRAINING, low=2
    )
    lr: float = flag(
        "initial learning rate of SGD", TRAINING, above=0, aliases=("--learning_rate",)
    )
    lr_steps: tuple = flag(
        "from EPOCH on the learning rate is FACTOR times --lr, such as 80:0.1,140:0.01",
        TRAINING,
        metavar="EPOCH:FACTOR,…",
    )
    weight_decay: float = flag("weight decay of SGD", TRAINING, low=0)

    dataset: str = flag("dataset", DATA)
    data_path: str = flag("folder of the dataset", DATA, metavar="DIR", resume=FREE)
    num_class: int = flag("number of classes", DATA, low=2, shown_default="the dataset's")

    id: str = flag("last part of the run folder's name (default: none)", RUN, "")
    seed: int = flag(
        "random seed of noise, networks, batches, mixup and GMMs; 123 is the published one",
        RUN,
        123,
        low=0,
        high=2**32 - 1,
        resume=SAME,
    )
    device: str = flag(
        "auto: cuda, mps or cpu, the first that there is", RUN, "auto", choices=DEVICES
    )
    gpuid: int = flag("index of the GPU", RUN, 0, low=0)
    sync_bn: bool | None = flag(
        "under torchrun on GPUs: batch norm statistics over the batches of all ranks",
        RUN,
        words=ON_OFF,
        resume=DEVICE,
        shown_default="on",
    )
    output: str = flag("parent of the run folder", RUN, "./checkpoint", metavar="DIR")
    save_every: int = flag("epochs between writes of last.pt", RUN, 1, low=1, metavar="EPOCHS")
    review: int = flag(
        "number of label issues on the review page labels.html; 0 for no page",
        RUN,
        500,
        low=0,
        metavar="N",
    )

    amp: bool = flag(
        "bf16 autocast", SPEED, words=("off", "bf16"), shown_default="bf16 on cuda, off elsewhere"
    )
    compile: bool = flag(
        "torch.compile; compiled dropout uses other random numbers",
        SPEED,
        words=ON_OFF,
        shown_default="on on cuda, off elsewhere",
    )
    channels_last: bool = flag(
        "memory format of images and weights", SPEED, words=ON_OFF, shown_default="on"
    )

    # dataset → the values of fields that the command line leaves open, and for the help.
    HYPERPARAMETERS: ClassVar[dict[str, dict]] = {}
    # What the method sets whatever the dataset (`with_method`).
    METHOD_DEFAULTS: ClassVar[dict] = {}
    # Test set → its title in acc.txt, if the published log has one.
    TEST_TITLES: ClassVar[dict[str, str]] = {}
    # The test set by whose accuracy each network's best epoch is selected (method 9).
    SELECT_ON: ClassVar[str] = ""
    # The noise rate of injected noise; photos come with theirs, which is unknown.
    r: ClassVar[float] = 0.0
    # DivideMix's warm-up penalty on confident predictions (method 6).
    entropy_penalty: ClassVar[bool] = False
    # With lambda_u = 0 the photo scripts train on the labeled rows of a mixed batch (method 5).
    labeled_rows_only: ClassVar[bool] = False
    top5: ClassVar[bool] = False

    def __post_init__(self):
        device = devices.find_device(self.device, self.gpuid)
        defaults = {each.name: each.metadata["fallback"] for each in fields(self)}
        defaults |= speed_defaults(device) | self.hyperparameters(device) | self.METHOD_DEFAULTS
        for each in fields(self):
            value = getattr(self, each.name)
            setattr(self, each.name, checked(each, defaults[each.name] if value is None else value))
        self.check(device)

    def hyperparameters(self, device: torch.device) -> dict:
        """The values of flags that are not given; the method may lack some of them."""
        return dict(self.HYPERPARAMETERS[self.dataset])

    def check(self, device: torch.device) -> None:
        """Raise InputError if two values contradict each other."""
        if not re.fullmatch(r"[\w.+-]*", self.id):
            raise InputError(f"--id {self.id}: expected letters, digits and . _ + - only")
        if self.compile and not devices.can_compile(device):
            raise InputError(
                "--compile on: this machine lacks a C compiler or Python's headers (Python.h, in a "
                "package such as python3-dev); leave it off"
            )
        joint = distributed.world_size() > 1 and device.type == "cuda"
        if self.sync_bn is None and joint:
            self.sync_bn = not self.compile
        if self.sync_bn and (self.compile or not joint):
            raise InputError("--sync_bn on: only under torchrun, on several GPUs, --compile off")

    @property
    def last_epoch(self) -> int:
        """The number of the last epoch."""
        return self.num_epochs

    def set_num_class(self, number: int, where: str) -> None:
        """Fill in the dataset's number of classes. Raises InputError if the flag differs."""
        if self.num_class not in (None, number):
            raise InputError(f"--num_class {self.num_class}: {where} has {number} classes")
        self.num_class = number


def speed_defaults(device: torch.device) -> dict:
    """The flags of speed that suit a device."""
    on_cuda = device.type == "cuda"
    compiles = on_cuda and devices.can_compile(device) and distributed.world_size() == 1
    return {"amp": on_cuda, "compile": compiles, "channels_last": True}


def configure(config_class: type[Config], **given: Any) -> Config:
    """The configuration of these flags: `config_class` with the flags of the method.

    Raises InputError on a flag that the script or the method does not have.
    """
    from smr.methods import METHODS  # the methods define their flags by this module

    whole = with_method(config_class, given.get("method", "smr"))
    for name in given.keys() - flags_of(whole).keys():
        owners = [key for key, other in METHODS.items() if name in flags_of(other.Flags)]
        reason = f"only with --method {' or '.join(owners)}" if owners else "there is no such flag"
        raise InputError(f"--{name}: {reason}")
    return whole(**given)


def with_method(config_class: type[Config], method: str) -> type[Config]:
    """The script's configuration class with the flags of a method. Raises InputError."""
    from smr.methods import METHODS

    if method not in METHODS:
        raise InputError(f"--method {method}: expected one of {', '.join(METHODS)}")
    bases, defaults = (config_class, METHODS[method].Flags), METHODS[method].DEFAULTS
    return dataclass(type(config_class.__name__, bases, {"METHOD_DEFAULTS": defaults}))


def resumed(config_class: type[Config], state: dict, given: dict[str, Any], where: str) -> Config:
    """The configuration of a checkpoint's run with these flags of the command line.

    On another kind of device, or on one rank instead of several, the flags of speed are those of
    the new device. Raises InputError that names each flag by which the figures would change.
    """
    stored = state["config"]
    flags = flags_of(with_method(config_class, stored["method"]))
    rules = {name: each.metadata["resume"] for name, each in flags.items()}
    device = devices.find_device(given.get("device", stored["device"]), given.get("gpuid", 0))
    several = distributed.world_size() > 1, state["world_size"] > 1
    free = {FREE}
    if device.type != state["device"] or several[0] != several[1]:
        stored = {name: value for name, value in stored.items() if rules.get(name) != DEVICE}
        free.add(DEVICE)
    changed = []
    for name, value in given.items():
        rule = rules.get(name, FREE)  # `configure` refuses a flag that the run's method lacks
        if rule in free or value == (before := stored[name]):
            continue
        # After its num_epochs, a run fine-tunes.
        fine_tuned = name == "num_epochs" and state["epoch"] > before
        if rule != GROWS or value < before or fine_tuned:
            words = f"--{name} {shown(flags[name], value)}"
            changed.append(f"{words} (the run has {shown(flags[name], before)})")
    if changed:
        raise InputError(f"{where} cannot be resumed with " + ", ".join(changed))
    try:
        return configure(config_class, **(stored | given))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
