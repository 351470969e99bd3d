"""The command line that both training scripts share: flags, their ranges, and their resolution.

A flag that is not given is None until `resolve` fills it from the data set's recipe, so that the
resolved configuration tells what was run.
"""

import argparse
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch.utils._triton import has_triton

from batches import InputError

# Flags whose value depends on no data set.
DEFAULTS = {
    "method": "smr",
    # DivideMix's published constants, kept by SMR in all of its recipes.
    "alpha": 4.0,
    "T": 0.5,
    "p_threshold": 0.5,
    "warmup_loss": "mixup",
    "id": "",
    "seed": 123,
    "device": "auto",
    "gpuid": 0,
    "output": "./checkpoint",
    "save_every": 1,
}
# Flags that say what to do with a run and are no part of its configuration.
ACTIONS = ("resume", "overwrite", "evaluate")
# Flags of speed: they change figures within rounding, and suit one kind of device.
SPEED = ("amp", "compile", "channels_last")
# Flags that may change between the parts of a resumed run; num_epochs may grow.
FREE = (
    "device",
    "gpuid",
    "output",
    "id",
    "save_every",
    "data_path",
    "download",
    "noise_file",  # the labels themselves are compared
    "num_workers",
    "num_epochs",
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; --help shows the usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def read(self, argument: str) -> argparse.Namespace:
        """Parse one argument, known or not. Raises InputError where it is out of range."""
        self.exit_on_error = False
        try:
            return self.parse_known_args([argument])[0]
        except argparse.ArgumentError as error:
            raise InputError(str(error)) from error
        finally:
            self.exit_on_error = True


@contextmanager
def one_line_errors(prog: str) -> Iterator[None]:
    """Turn an InputError into one line on standard error and exit status 2."""
    try:
        yield
    except InputError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def number(
    kind: type, low: float, high: float = 1_000_000, open_low: bool = False
) -> Callable[[str], float]:
    """An argparse type: an int or float from low to high, low itself excluded if open_low."""

    def parse(text: str):
        wanted = "a whole number" if kind is int else "a number"
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (open_low and value == low):
            start = "above" if open_low else "from"
            raise argparse.ArgumentTypeError(
                f"'{text}': expected {wanted} {start} {low:,} to {high:,}"
            )
        return value

    return parse


def lr_steps(text: str) -> tuple[tuple[int, float], ...]:
    """'80:0.1,140:0.01' → ((80, 0.1), (140, 0.01)): from an epoch on, a factor of the first lr."""
    if not re.fullmatch(r"(\d+:\d*\.?\d+(e-?\d+)?(,|$))*", text) or text.endswith(","):
        raise argparse.ArgumentTypeError(
            f"'{text}': expected EPOCH:FACTOR,…, such as 80:0.1,140:0.01, or '' for no step"
        )
    pairs = (step.split(":") for step in text.split(",") if step)
    steps = tuple(sorted((int(epoch), float(factor)) for epoch, factor in pairs))
    if any(math.isinf(factor) for _, factor in steps):
        raise argparse.ArgumentTypeError(f"'{text}': a factor is too large")
    return steps


def run_id(text: str) -> str:
    """A word that a folder name can end in."""
    if text and not re.fullmatch(r"[\w.+-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}': expected letters, digits and . _ + - only")
    return text


def new_parser(usage_docstring: str) -> Parser:
    """A parser with the flags of both scripts; each script adds those of its data."""
    parser = Parser(
        description=usage_docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_method_flags(parser.add_argument_group("method (SPEC 3 to 6)"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_run_flags(parser.add_argument_group("run"))
    _add_speed_flags(
        parser.add_argument_group("speed (within rounding; compiled dropout draws anew)")
    )
    return parser


def _add_method_flags(group) -> None:
    add = group.add_argument
    add(
        "--method",
        choices=("smr", "dividemix", "ce"),
        help="smr; dividemix: warm-up with CE, no recalibration; ce: plain cross-entropy in every "
        "epoch (default smr)",
    )
    add(
        "--warmup_loss",
        choices=("mixup", "ce"),
        help="loss of the warm-up (default: mixup for smr, ce for dividemix)",
    )
    add(
        "--recalibrate_every",
        type=number(int, 0),
        metavar="K",
        help="a cross-entropy epoch every K epochs after the warm-up, 0 for never (default: the "
        "recipe's for smr, 0 for dividemix)",
    )
    add(
        "--warm_up",
        type=number(int, 0),
        metavar="EPOCHS",
        help="epochs of warm-up, before memorising begins (default: the recipe's)",
    )
    add(
        "--alpha",
        type=number(float, 0, open_low=True),
        help="parameter of mixup's Beta(alpha, alpha) (default 4: pairs are mixed nearly evenly)",
    )
    add(
        "--lambda_u",
        type=number(float, 0),
        help="weight of the unlabelled loss (default: the published value of the noise cell)",
    )
    add(
        "--p_threshold",
        type=number(float, 0, 1),
        help="clean probability above which a sample is labelled (default 0.5: the likelier side)",
    )
    add(
        "--T",
        type=number(float, 0, open_low=True),
        help="sharpening temperature of guessed and refined targets (default 0.5)",
    )


def _add_training_flags(group) -> None:
    add = group.add_argument
    add(
        "--num_epochs",
        type=number(int, 0),
        help="number of the last epoch; epoch 0 is run too (default: the recipe's)",
    )
    add(
        "--batch_size",
        type=number(int, 2),
        help="B: images of a labelled batch; an unlabelled one holds as many, a warm-up batch 2B "
        "(default: the recipe's)",
    )
    add(
        "--lr",
        "--learning_rate",
        type=number(float, 0, open_low=True),
        help="first learning rate of SGD (default: the recipe's)",
    )
    add(
        "--lr_steps",
        type=lr_steps,
        metavar="EPOCH:FACTOR,…",
        help="from EPOCH on, FACTOR times the first learning rate (default: the recipe's)",
    )
    add("--weight_decay", type=number(float, 0), help="of SGD (default: the recipe's)")


def _add_run_flags(group) -> None:
    add = group.add_argument
    add("--id", type=run_id, help="ends the run folder's name (default: none)")
    add(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        help="of noise, networks, batches, mixup and mixtures (default 123, the published one)",
    )
    add(
        "--device",
        choices=("auto", "cuda", "cpu", "mps"),
        help="auto takes the first of cuda, mps and cpu that is there (default auto)",
    )
    add("--gpuid", type=number(int, 0), help="which CUDA card (default 0)")
    add(
        "--output",
        metavar="DIR",
        help="where the run folder is made (default ./checkpoint)",
    )
    add(
        "--save_every",
        type=number(int, 1),
        metavar="EPOCHS",
        help="write last.pt after so many epochs (default 1: nothing is lost)",
    )
    end = group.add_mutually_exclusive_group()
    end.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="PATH",
        help="continue the run that this command line names, or the one at PATH",
    )
    end.add_argument(
        "--overwrite", action="store_true", help="delete the run that is in the folder"
    )
    end.add_argument("--evaluate", metavar="PATH", help="only test the checkpoint at PATH")


def _add_speed_flags(group) -> None:
    add = group.add_argument
    add(
        "--amp",
        choices=("off", "bf16"),
        help="bf16 autocast (default: bf16 on cuda, off elsewhere: few CPUs have bf16 units)",
    )
    add(
        "--compile",
        choices=("off", "on"),
        help="torch.compile the networks (default: on on cuda; off elsewhere, where the compiler's "
        "start outlasts a short run)",
    )
    add(
        "--channels_last",
        choices=("off", "on"),
        help="memory format of images and weights (default on: convolutions are faster)",
    )


def add_data_group(parser: Parser, datasets: Sequence[str], about: str, path_about: str):
    """The group of a script's data flags, with those that both have; `about` the data sets."""
    group = parser.add_argument_group("data and networks (SPEC 1, 2)")
    add = group.add_argument
    add("--dataset", choices=tuple(datasets), help=about)
    add("--data_path", metavar="DIR", help=path_about)
    add(
        "--num_class",
        type=number(int, 2),
        help="number of classes (default: the data set's; another one is an error)",
    )
    add(
        "--width",
        type=number(int, 1, 1024),
        help="channels of PreAct-ResNet-18's first stage (default 64; digits 16)",
    )
    return group


def check_values(parser: Parser, config: dict) -> None:
    """Raise InputError where a configuration from a file holds what no command line gives."""
    for flag, value in config.items():
        given = f"--{flag}" if isinstance(value, bool) else f"--{flag}={as_text(value)}"
        if vars(parser.read(given)).get(flag, value) not in (value, None):
            raise InputError(f"--{flag}: {value!r}")


def as_text(value) -> str:
    """A flag's value as a command line gives it; the inverse of `lr_steps` for tuples."""
    if isinstance(value, tuple):
        return ",".join(as_text(step).replace(",", ":") for step in value)
    return str(value)


def given_flags(args: argparse.Namespace) -> dict:
    """The flags that the command line gives, but for those that only say what to do."""
    return {k: v for k, v in vars(args).items() if v is not None and k not in ACTIONS}


def resolve(given: dict, recipe: dict, device: torch.device) -> dict:
    """The configuration of a run: `given` flags, and for the others the method's, recipe's and
    device's values.

    Raises InputError where two flags contradict each other.
    """
    method = given.get("method", DEFAULTS["method"])
    baseline = {}
    if method == "ce":
        baseline = {"warmup_loss": "ce", "recalibrate_every": 0, "warm_up": 0}
        for flag, value in baseline.items():
            if given.get(flag, value) != value:
                raise InputError(f"--{flag} with --method ce: it has no warm-up, no recalibration")
    elif method == "dividemix":
        baseline = {"warmup_loss": "ce", "recalibrate_every": 0}
    on_cuda = device.type == "cuda"
    speed = {
        "amp": "bf16" if on_cuda else "off",
        "compile": "on" if on_cuda and can_compile() else "off",
        "channels_last": "on",
    }
    return DEFAULTS | speed | recipe | baseline | given


def can_compile() -> bool:
    """Whether torch.compile can build kernels for a card: Triton needs a C compiler."""
    compilers = os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")
    return has_triton() and any(compilers)


def settle_num_class(config: dict, found: int, where: str) -> None:
    """Fill in the number of classes of the data. Raises InputError where a flag says another."""
    if config.setdefault("num_class", found) != found:
        raise InputError(f"--num_class {config['num_class']}: {where} has {found} classes")


def recipe_of(config: dict, recipe_class: type):
    """The dataclass `recipe_class` from a resolved configuration."""
    values = {f.name: config[f.name] for f in fields(recipe_class) if f.name in config}
    return recipe_class(**values | {"amp": config["amp"] == "bf16"})


def find_device(name: str, gpuid: int) -> torch.device:
    """The device of --device and --gpuid. Raises InputError where it is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    if not there[name]:
        raise InputError(f"--device {name}: this torch finds none; use --device cpu or auto")
    if name == "cuda" and gpuid >= torch.cuda.device_count():
        raise InputError(
            f"--gpuid {gpuid}: this machine has {torch.cuda.device_count()} CUDA cards"
        )
    return torch.device(name, gpuid) if name == "cuda" else torch.device(name)
