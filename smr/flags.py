"""Flags: fields of a dataclass with help, range and resume rule, and the command line of them."""

import argparse
import difflib
import math
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
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
RESUME_OF_GROUP = {RUN: FREE, SPEED: DEVICE}


def flag(
    help: str,
    group: str = METHOD,
    default: Any = None,
    *,
    fallback: Any = None,
    low: float = -1_000_000,
    high: float = 1_000_000,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    metavar: str | None = None,
    shown_default: str = "",
    aliases: tuple[str, ...] = (),
    resume: str = "",
) -> Any:
    """A field of a configuration, which is a flag of the command line.

    Args:
        fallback: its value if neither the command line nor `hyperparameters` has one.
        low, high, above: the range of a number; `above` leaves the bound itself out.
        choices: what a text may be.
        words: of a bool, what the command line calls False and True; without them the flag alone
            is True.
        shown_default: the default in words, if it is not one value.
        resume: SAME, FREE, GROWS or DEVICE, if it is not RESUME_OF_GROUP or else SAME.
    """
    resume = resume or RESUME_OF_GROUP.get(group, SAME)
    return field(default=default, metadata=dict(locals()))


def kind_of(each) -> type:
    """int, float, str, bool or tuple: the type of a field, without None."""
    return next(iter(typing.get_args(each.type)), each.type)


def range_of(kind: type, low: float, high: float, above: float | None = None) -> str:
    """'a whole number from 2 to 1,000,000'."""
    start = f"from {low:,}" if above is None else f"above {above:,}"
    return f"{'a whole number' if kind is int else 'a number'} {start} to {high:,}"


def checked(each, value: Any, text: str = "") -> Any:
    """The value of a field, a number in the field's own type. Raises InputError.

    Args: text, what the message shows of the value.
    """
    if value is None:
        return None
    kind, about = kind_of(each), each.metadata
    if kind is float and type(value) is int:
        value = float(value)
    elif kind is tuple and not isinstance(value, str):
        value = tuple(map(tuple, value))
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if kind in (int, float):
        low, high, above = about["low"], about["high"], about["above"]
        expected = range_of(kind, low, high, above)
        fits = fits and low <= value <= high and (above is None or value > above)
    elif kind is tuple:
        expected = "EPOCH:FACTOR,…, such as 80:0.1,140:0.01, or '' for no step"
        fits = fits and all(len(s) == 2 and s[0] >= 0 and 0 <= s[1] < math.inf for s in value)
    else:
        choices = about["choices"] or about["words"]
        expected = f"one of {', '.join(choices)}" if choices else kind.__name__
        fits = fits and (kind is bool or not choices or value in choices)
    if not fits:
        raise InputError(f"--{each.name} {text or value}: expected {expected}")
    return value


def read(each, text: str) -> Any:
    """A field's value from the text of the command line. Raises InputError."""
    kind, words, value = kind_of(each), each.metadata["words"], text
    with suppress(ValueError):  # `checked` refuses the text itself
        if words:
            value = words.index(text) == 1
        else:
            value = read_lr_steps(text) if kind is tuple else kind(text)
    return checked(each, value, f"'{text}'")


def read_lr_steps(text: str) -> tuple[tuple[int, float], ...]:
    """'80:0.1,140:0.01' → ((80, 0.1), (140, 0.01)): from an epoch on, a factor of the first lr."""
    pairs = [step.split(":") for step in text.split(",")] if text else []
    return tuple(sorted((int(epoch), float(factor)) for epoch, factor in pairs))


def number(kind: type, low: float, high: float = 1_000_000) -> Callable[[str], float]:
    """An argparse type for a script without a configuration: an int or float from low to high."""

    def read_number(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"'{text}': expected {range_of(kind, low, high)}")

    return read_number


def shown(each, value: Any) -> str:
    """A field's value as the command line writes it."""
    words = each.metadata["words"]
    return words[value] if words and isinstance(value, bool) else show_value(value)


def show_value(value: Any) -> str:
    """A value of config.json as the command line writes it."""
    if isinstance(value, bool):
        return ON_OFF[value]
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

    parser = Parser(usage)
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    flags = flags_of(config_class)
    for method in METHODS.values():
        flags |= flags_of(method.Flags)
    for name, each in flags.items():
        about = each.metadata
        choices = tuple(METHODS) if name == "method" else about["choices"] or about["words"]
        options = {"metavar": "{" + ",".join(choices) + "}" if choices else about["metavar"]}
        if kind_of(each) is bool and not choices:
            options = {"action": "store_true", "default": None}
        text = help_of(each, config_class.HYPERPARAMETERS)
        groups[about["group"]].add_argument(f"--{name}", *about["aliases"], help=text, **options)
    add = groups[RUN].add_mutually_exclusive_group().add_argument
    text = "resume the run of this command line, or the one at PATH"
    add("--resume", nargs="?", const=True, default=False, metavar="PATH", help=text)
    add("--overwrite", action="store_true", help="delete the run in the run folder and start again")
    text = "test this checkpoint, or a run folder's last.pt, without training"
    add("--evaluate", default="", metavar="PATH", help=text)
    args = vars(parser.parse_args(argv))
    action = Action(*(args.pop(name) for name in flags_of(Action)))
    texts = {name: text for name, text in args.items() if text is not None}
    if "gpuid" in texts and distributed.launched():
        parser.error("argument --gpuid: torchrun's processes take a GPU each")
    try:
        return {n: t if t is True else read(flags[n], t) for n, t in texts.items()}, action
    except InputError as error:
        parser.error(str(error))


def help_of(each, tables: dict[str, dict]) -> str:
    """A flag's help with its default: one value, or those of the datasets."""
    plain = each.default if each.default is not None else each.metadata["fallback"]
    values = {dataset: table.get(each.name, plain) for dataset, table in tables.items()}
    first = next(iter(values.values()))
    others = {key: value for key, value in values.items() if value not in (None, "", first)}
    texts = ["" if first is None else shown(each, first)]
    texts += [f"{dataset} {shown(each, value)}" for dataset, value in others.items()]
    default = each.metadata["shown_default"] or "; ".join(texts)
    text = each.metadata["help"].replace("%", "%%")
    return text + (f" (default: {default})" if default else "")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line on rank 0, and that names the flag you meant."""

    def __init__(self, usage: str):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=usage, formatter_class=raw, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = "--" + unknown[0].split("=")[0].replace("-", "_").strip("_")
            close = difflib.get_close_matches(word, self._option_string_actions, 1, 0.7)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"{unknown[0]}: there is no such flag{hint}")
        return parsed

    def _print_message(self, message: str, file=None):
        if distributed.is_rank_zero():
            super()._print_message(message, file)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")
