"""Flags: fields of a dataclass with help, range and resume rule, and the command line of them."""

import argparse
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from smr import distributed
from smr.errors import InputError

# What a resume may change of a flag: nothing, anything, its number upwards, or, for flags that
# change figures within rounding only, anything if the device is another one.
SAME, FREE, GROWS, DEVICE = "same", "free", "grows", "device"
GROUPS = ("method", "training", "data and networks", "run", "speed (within rounding)")
METHOD, TRAINING, DATA, RUN, SPEED = GROUPS
ON_OFF = ("off", "on")
RESUME_HELP = "resume the run of this command line, or the one at PATH"
EVALUATE_HELP = "test this checkpoint, or a run folder's last.pt, without training"


def flag(
    help: str,
    group: str = METHOD,
    default: Any = None,
    *,
    fallback: Any = None,
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
    metadata = flag("", low=low, high=high).metadata
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


def shown_flags(config: Any, names: Iterable[str]) -> str:
    """'--lr 0.02  --warm_up 10': these fields of a configuration as flags."""
    flags = flags_of(config)
    return "  ".join(f"--{name} {shown(flags[name], getattr(config, name))}" for name in names)


@dataclass(frozen=True)
class Action:
    """What to do with a run, which is no part of its configuration."""

    resume: str | bool = False
    overwrite: bool = False
    evaluate: str = ""


def parse(config_class: type, usage: str, argv: list[str] | None) -> tuple[dict[str, Any], Action]:
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
    add("--evaluate", metavar="PATH", help=EVALUATE_HELP)
    args = vars(parser.parse_args(argv))
    action = Action(*(args.pop(name) or default for name, default in vars(Action()).items()))
    given = {name: value for name, value in args.items() if value is not None}
    if "gpuid" in given and distributed.launched():
        parser.error("argument --gpuid: torchrun's processes take a GPU each")
    return given, action


def help_of(each, config_class: type) -> str:
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
