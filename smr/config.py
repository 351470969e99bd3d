"""One configuration: a dataclass whose fields are the flags and config.json.

A script derives its own from `Config` and adds the flags of its data; a method brings the flags of
the method. A field that is None after that takes its value from the script's hyperparameters.
"""

import argparse
import difflib
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch

from smr import devices, distributed
from smr.errors import InputError

# What a resume may change of a flag: nothing, anything, its number upwards, or, for flags that
# change figures within rounding only, anything if the device is another one.
SAME, FREE, GROWS, DEVICE = "same", "free", "grows", "device"
GROUPS = ("method", "training", "data and networks", "run", "speed (within rounding)")
METHOD, TRAINING, DATA, RUN, SPEED = GROUPS


def flag(
    default: Any = None,
    *,
    fallback: Any = None,
    help: str,
    group: str = METHOD,
    low: float | None = None,
    high: float = 1_000_000,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    words: tuple[str, str] | None = None,
    metavar: str | None = None,
    shown_default: str = "",
    aliases: tuple[str, ...] = (),
    resume: str = SAME,
) -> Any:
    """A field of a configuration, which is a flag of the command line.

    Args:
        fallback: its value if neither the command line nor `hyperparameters` has one.
        low, high, above: the range of a number; `above` leaves the bound itself out.
        choices, pattern: what a text may be. A pattern is a regular expression.
        words: of a bool, what the command line calls False and True; without them the flag alone
            is True.
        shown_default: the default in words, if it is not one value.
        resume: SAME, FREE, GROWS or DEVICE.
    """
    return field(default=default, metadata=dict(locals()))


@dataclass
class Config:
    """The flags of every run. Raises InputError if a value is out of range.

    Epochs count from 0 to num_epochs inclusive (method 3). Class attributes have no flag.
    """

    method: str = flag("smr", help="training method (docs/method.md, sections 6 and 12)")

    num_epochs: int = flag(
        group=TRAINING,
        low=0,
        resume=GROWS,
        help="number of the last epoch; epochs run from 0 to it inclusive",
    )
    batch_size: int = flag(
        group=TRAINING,
        low=2,
        help="B, images per labeled and per unlabeled batch; a warm-up batch has 2B",
    )
    lr: float = flag(
        group=TRAINING, above=0, aliases=("--learning_rate",), help="initial learning rate of SGD"
    )
    lr_steps: tuple = flag(
        group=TRAINING,
        metavar="EPOCH:FACTOR,…",
        help="from EPOCH on the learning rate is FACTOR times --lr, such as 80:0.1,140:0.01",
    )
    weight_decay: float = flag(group=TRAINING, low=0, help="weight decay of SGD")

    dataset: str = flag(group=DATA, help="dataset")
    data_path: str = flag(group=DATA, metavar="DIR", resume=FREE, help="folder of the dataset")
    num_class: int = flag(
        group=DATA, low=2, shown_default="the dataset's", help="number of classes"
    )

    id: str = flag(
        "",
        group=RUN,
        pattern=r"[\w.+-]*",
        resume=FREE,
        help="last part of the run folder's name (default: none)",
    )
    seed: int = flag(
        123,
        group=RUN,
        low=0,
        high=2**32 - 1,
        help="random seed of noise, networks, batches, mixup and GMMs; 123 is the published one",
    )
    device: str = flag(
        "auto",
        group=RUN,
        choices=("auto", "cuda", "cpu", "mps"),
        resume=FREE,
        help="auto is the first of cuda, mps and cpu that is available",
    )
    gpuid: int = flag(0, group=RUN, low=0, resume=FREE, help="index of the GPU")
    sync_bn: bool | None = flag(
        group=RUN,
        words=("off", "on"),
        resume=DEVICE,
        shown_default="on",
        help="under torchrun on GPUs: batch norm statistics over the batches of all ranks",
    )
    output: str = flag(
        "./checkpoint", group=RUN, metavar="DIR", resume=FREE, help="parent of the run folder"
    )
    save_every: int = flag(
        1, group=RUN, low=1, metavar="EPOCHS", resume=FREE, help="epochs between writes of last.pt"
    )
    review: int = flag(
        500,
        group=RUN,
        low=0,
        metavar="N",
        resume=FREE,
        help="number of label issues on the review page labels.html; 0 for no page",
    )

    amp: bool = flag(
        group=SPEED,
        words=("off", "bf16"),
        resume=DEVICE,
        shown_default="bf16 on cuda, off elsewhere",
        help="bf16 autocast",
    )
    compile: bool = flag(
        group=SPEED,
        words=("off", "on"),
        resume=DEVICE,
        shown_default="on on cuda, off elsewhere",
        help="torch.compile; compiled dropout uses other random numbers",
    )
    channels_last: bool = flag(
        group=SPEED,
        words=("off", "on"),
        resume=DEVICE,
        shown_default="on",
        help="memory format of images and weights",
    )

    # dataset → the values of fields that the command line leaves open, and for the help.
    HYPERPARAMETERS: ClassVar[dict[str, dict]] = {}
    # What the method sets whatever the dataset (`with_method`).
    METHOD_DEFAULTS: ClassVar[dict] = {}
    # Flags that people try and this script does not have → what to do instead.
    ELSEWHERE: ClassVar[dict[str, str]] = {}
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
            value = defaults[each.name] if value is None else value
            setattr(self, each.name, checked(each, value))
        self.check(device)

    def hyperparameters(self, device: torch.device) -> dict:
        """The values of flags that are not given; the method may lack some of them."""
        return self.HYPERPARAMETERS[self.dataset]

    def check(self, device: torch.device) -> None:
        """Raise InputError if two values contradict each other."""
        if self.compile and not devices.can_compile(device):
            raise InputError(
                "--compile on: this machine lacks a C compiler or Python's headers (Python.h, in a "
                "package such as python3-dev); leave it off"
            )
        joint = distributed.world_size() > 1 and device.type == "cuda"
        if self.sync_bn and not joint:
            raise InputError("--sync_bn on: only under torchrun, on several GPUs")
        if self.sync_bn is None and joint:
            self.sync_bn = not self.compile
        if self.sync_bn and self.compile:
            raise InputError("--compile on with --sync_bn on: torch compiles no synced batch norm")

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


def kind_of(each) -> type:
    """int, float, str, bool or tuple: the type of a field, without None."""
    hint = each.type
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def checked(each, value: Any) -> Any:
    """The value of a field, a number in the field's own type. Raises InputError."""
    if value is None:
        return None
    kind, about = kind_of(each), each.metadata
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value, fits = float(value), True
    expected = ""
    if kind is tuple:
        value = tuple(tuple(step) for step in value)
        fits = all(len(step) == 2 and math.isfinite(step[1]) for step in value)
        expected = about["metavar"]
    if about["choices"]:
        fits = fits and value in about["choices"]
        expected = "one of " + ", ".join(about["choices"])
    elif about["pattern"]:
        fits = fits and re.fullmatch(about["pattern"], value) is not None
        expected = "letters, digits and . _ + - only"
    elif kind in (int, float) and (about["low"] is not None or about["above"] is not None):
        low, open_low = about["low"], about["above"] is not None
        low = about["above"] if open_low else low
        fits = fits and low <= value <= about["high"] and not (open_low and value == low)
        expected = "a whole number" if kind is int else "a number"
        expected += f" {'above' if open_low else 'from'} {low:,} to {about['high']:,}"
    if not fits:
        value = value if kind is tuple else shown(each, value)
        raise InputError(f"--{each.name} {value}: expected {expected or kind.__name__}")
    return value


def read(each, text: str) -> Any:
    """A field's value from the text of the command line. Raises argparse.ArgumentTypeError."""
    kind, words = kind_of(each), each.metadata["words"]
    try:
        if words:
            if text not in words:
                raise InputError(f"expected {words[0]} or {words[1]}")
            return text == words[1]
        return checked(each, read_lr_steps(text) if kind is tuple else kind(text))
    except InputError as error:
        reason = str(error).partition("expected ")[2]
        raise argparse.ArgumentTypeError(f"'{text}': expected {reason}") from None
    except ValueError:
        kind_name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"'{text}': expected {kind_name}") from None


def number(kind: type, low: float, high: float = 1_000_000) -> Callable[[str], float]:
    """An argparse type for a script without a configuration: an int or float from low to high."""
    metadata = {
        "low": low,
        "high": high,
        "above": None,
        "choices": (),
        "pattern": "",
        "words": None,
    }
    each = types.SimpleNamespace(name="", type=kind, metadata=metadata)
    return lambda text: read(each, text)


def read_lr_steps(text: str) -> tuple[tuple[int, float], ...]:
    """'80:0.1,140:0.01' → ((80, 0.1), (140, 0.01)): from an epoch on, a factor of the first lr."""
    if not re.fullmatch(r"(\d+:\d*\.?\d+(e-?\d+)?(,|$))*", text) or text.endswith(","):
        raise InputError("expected EPOCH:FACTOR,…, such as 80:0.1,140:0.01, or '' for no step")
    pairs = (step.split(":") for step in text.split(",") if step)
    return tuple(sorted((int(epoch), float(factor)) for epoch, factor in pairs))


def shown(each, value: Any) -> str:
    """A field's value as the command line writes it."""
    words = each.metadata["words"]
    return words[value] if words and isinstance(value, bool) else show_value(value)


def show_value(value: Any) -> str:
    """A value of config.json as the command line writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ",".join(f"{epoch}:{factor:g}" for epoch, factor in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def flags_of(config_class: type) -> dict[str, Any]:
    """Name → field of a configuration class, or of one of its instances."""
    return {each.name: each for each in fields(config_class)}


def shown_flags(config: Config, names: typing.Iterable[str]) -> str:
    """'--lr 0.02  --warm_up 10': these fields of a configuration as flags."""
    flags = flags_of(config)
    return "  ".join(f"--{name} {shown(flags[name], getattr(config, name))}" for name in names)


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


@dataclass(frozen=True)
class Action:
    """What to do with a run, which is no part of its configuration."""

    resume: str | bool = False
    overwrite: bool = False
    evaluate: str = ""


def parse(
    config_class: type[Config], usage: str, argv: list[str] | None
) -> tuple[dict[str, Any], Action]:
    """The flags that the command line gives, by name, and what to do. Exits with status 2."""
    from smr.methods import METHODS

    parser = Parser(usage, config_class.ELSEWHERE)
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    flags = flags_of(config_class)
    for method in METHODS.values():
        flags |= {k: v for k, v in flags_of(method.Flags).items() if k not in flags}
    for name, each in flags.items():
        about = each.metadata
        options: dict[str, Any] = {"help": help_of(each, config_class), "default": None}
        if kind_of(each) is bool and not about["words"]:
            options["action"] = "store_true"
        else:
            options |= {"type": lambda text, each=each: read(each, text)}
            choices = tuple(METHODS) if name == "method" else about["choices"] or about["words"]
            options["metavar"] = "{" + ",".join(choices) + "}" if choices else about["metavar"]
        groups[about["group"]].add_argument(f"--{name}", *about["aliases"], **options)
    add = groups[RUN].add_mutually_exclusive_group().add_argument
    add("--resume", nargs="?", const=True, metavar="PATH", help=RESUME_HELP)
    add("--overwrite", action="store_true", help="delete the run in the run folder and start again")
    add(
        "--evaluate",
        metavar="PATH",
        help="test this checkpoint, or a run folder's last.pt, without training",
    )
    args = vars(parser.parse_args(argv))
    action = Action(*(args.pop(name) or default for name, default in vars(Action()).items()))
    given = {name: value for name, value in args.items() if value is not None}
    if "gpuid" in given and distributed.launched():
        parser.error("argument --gpuid: torchrun's processes take a GPU each")
    return given, action


RESUME_HELP = "resume the run of this command line, or the one at PATH"


def help_of(each, config_class: type[Config]) -> str:
    """A flag's help with its default: one value, or those of the datasets."""
    about, tables = each.metadata, config_class.HYPERPARAMETERS
    default = about["shown_default"]
    values = {
        dataset: shown(each, table[each.name])
        for dataset, table in tables.items()
        if table.get(each.name) not in (None, "")
    }
    if not default and values:
        (_, first), *others = values.items()
        others = [f"{dataset} {value}" for dataset, value in others if value != first]
        default = "; ".join([first, *others])
    elif not default and kind_of(each) is not bool:
        plain = each.default if each.default is not None else about["fallback"]
        default = "" if plain in (None, "") else shown(each, plain)
    text = about["help"].replace("%", "%%")
    return text + (f" (default: {default})" if default else "")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line on rank 0, and that names the flag you meant."""

    def __init__(self, usage: str, elsewhere: dict[str, str] | None = None):
        super().__init__(
            description=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.elsewhere = elsewhere or {}

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]}: there is no such flag{self.hint(unknown[0])}")
        return parsed

    def hint(self, unknown: str) -> str:
        """What to do instead of an unknown flag."""
        word = unknown.split("=")[0].replace("-", "_").strip("_")
        if word in self.elsewhere:
            return f"; {self.elsewhere[word]}"
        known = [name for action in self._actions for name in action.option_strings]
        close = [name for name in known if len(word) > 2 and word in name]
        close += difflib.get_close_matches(f"--{word}", known, 1, 0.7)
        return f"; did you mean {close[0]}?" if close else ""

    def _print_message(self, message: str, file=None):
        if distributed.is_rank_zero():
            super()._print_message(message, file)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def resumed(config_class: type[Config], state: dict, given: dict[str, Any], where: str) -> Config:
    """The configuration of a checkpoint's run with these flags of the command line.

    On another kind of device, or on one rank instead of several, the flags of speed are those of
    the new device. Raises InputError that names each flag by which the figures would change.
    """
    stored = state["config"]
    device = devices.find_device(given.get("device", stored["device"]), given.get("gpuid", 0))
    several = distributed.world_size() > 1, state["world_size"] > 1
    moved = device.type != state["device"] or several[0] != several[1]
    flags, changed = flags_of(with_method(config_class, stored["method"])), []
    for name, value in given.items():
        rule = flags[name].metadata["resume"] if name in flags else SAME
        before = stored.get(name)
        if rule == FREE or (rule == DEVICE and moved) or value == before:
            continue
        if not (rule == GROWS and value > before):
            words = (shown(flags[name], v) if name in flags else v for v in (value, before))
            changed.append("--{} {} (the run has {})".format(name, *words))
    if changed:
        raise InputError(f"{where} cannot be resumed with " + ", ".join(changed))
    kept = {
        name: value
        for name, value in stored.items()
        if not (moved and name in flags and flags[name].metadata["resume"] == DEVICE)
    }
    return configure(config_class, **(kept | given))


def as_dict(config: Config) -> dict[str, Any]:
    """The fields of a configuration, for config.json and checkpoints."""
    return asdict(config)
