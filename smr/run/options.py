"""The command line that the training scripts share: flags, their ranges, and their resolution.

A flag that is not given is None until `resolve` fills it from the data set's recipe, so that the
resolved configuration tells what was run.
"""

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from smr import distributed
from smr.errors import InputError
from smr.run.devices import can_compile

# What flags are that neither a recipe nor the command line gives.
DEFAULTS = {
    "method": "smr",
    # DivideMix's published constants for CIFAR, kept by SMR.
    "alpha": 4.0,
    "T": 0.5,
    "p_threshold": 0.5,
    "warmup_loss": "mixup",
    "augment": "weak",
    "id": "",
    "seed": 123,
    "device": "auto",
    "gpuid": 0,
    "output": "./checkpoint",
    "save_every": 1,
    "review": 500,
}
# What runs did whose configuration is older than these flags.
OLDER = {"augment": "weak"}
# Flags that say what to do with a run and are no part of its configuration.
ACTIONS = ("resume", "overwrite", "evaluate")
# Flags that suit one kind of device, or several cards: they change figures within rounding, or
# within what the number of cards does.
SPEED = ("amp", "compile", "channels_last", "sync_bn")
# Values of the flags that say what networks start from, where a checkpoint holds the networks.
FROM_CHECKPOINT = {"pretrained": False, "weights": ""}
# Flags that may change between the parts of a resumed run; num_epochs may grow.
FREE = (
    *("device", "gpuid", "output", "id", "save_every", "data_path", "download", "num_workers"),
    "review",
    *("imagenet_path", "skip_broken", "check_images"),
    "noise_file",  # the labels themselves are compared
    "num_epochs",
)
# The two words of a switch: for False, for True.
SWITCHES = {"amp": ("off", "bf16")} | dict.fromkeys(
    ("compile", "channels_last", "pretrained", "sync_bn"), ("off", "on")
)


class Flags(dict):
    """A configuration whose values are attributes too."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; --help shows the usage.

    Args: recipes, data set → the values of flags that are not given, for the help; elsewhere, the
    flags that people try and that this script has not → what to do instead.
    """

    def __init__(
        self,
        description: str,
        recipes: Mapping[str, dict] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.recipes = recipes or {}
        self.elsewhere = elsewhere or {}

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]}: there is no such flag{self.hint(unknown[0])}")
        return parsed

    def hint(self, flag: str) -> str:
        """What to do instead of giving an unknown flag."""
        word = flag.split("=")[0].replace("-", "_").strip("_")
        if f"--{word}" in self.elsewhere:
            return f"; {self.elsewhere[f'--{word}']}"
        known = [name for action in self._actions for name in action.option_strings]
        close = [name for name in known if len(word) > 2 and word in name]
        close += difflib.get_close_matches(f"--{word}", known, 1, 0.7)
        return f"; did you mean {close[0]}?" if close else ""

    def default_of(self, flag: str, otherwise: str = "by the number of photos") -> str:
        """What the recipes give for a flag, in words: 'default: 300; digits 60'.

        Args: otherwise, what the flag is where a recipe leaves it open.
        """
        values = {
            dataset: shown(flag, recipe[flag]) if flag in recipe else otherwise
            for dataset, recipe in self.recipes.items()
        }
        (_, first), *others = values.items()
        words = [first] + [f"{name} {value}" for name, value in others if value != first]
        return "default: " + "; ".join(words)

    def _print_message(self, message: str, file=None):
        if distributed.is_rank_zero():
            super()._print_message(message, file)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def shown(flag: str, value) -> str:
    """A flag's value as a command line gives it."""
    if flag in SWITCHES and isinstance(value, bool):
        return SWITCHES[flag][value]
    if flag == "lr_steps" and value is not None:
        return ",".join(f"{epoch}:{factor:g}" for epoch, factor in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def one_line_errors(prog: str) -> Iterator[None]:
    """Turn an InputError into one line on standard error and exit status 2.

    Also: what a console's encoding lacks is written escaped, and a closed pipe ends the script
    quietly, with the status 141 of other programs.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Python flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def number(
    kind: type, low: float, high: float = 1_000_000, open_low: bool = False
) -> Callable[[str], float]:
    """An argparse type: an int or float from low to high, low itself excluded if open_low."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (open_low and value == low):
            wanted = "a whole number" if kind is int else "a number"
            wanted += f" {'above' if open_low else 'from'} {low:,} to {high:,}"
            raise argparse.ArgumentTypeError(f"'{text}': expected {wanted}")
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


def switch(flag: str) -> Callable[[str], bool]:
    """An argparse type of a flag in SWITCHES: whether its second word is given."""

    def parse(text: str) -> bool:
        if text not in SWITCHES[flag]:
            raise argparse.ArgumentTypeError(
                f"'{text}': expected {SWITCHES[flag][0]} or {SWITCHES[flag][1]}"
            )
        return text == SWITCHES[flag][1]

    return parse


def card(text: str) -> int:
    """An argparse type: the number of a CUDA card, which no rank is told."""
    if distributed.launched():
        raise argparse.ArgumentTypeError("torchrun's processes take a card each, by their number")
    return number(int, 0)(text)


def run_id(text: str) -> str:
    """A word that a folder name can end in."""
    if text and not re.fullmatch(r"[\w.+-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}': expected letters, digits and . _ + - only")
    return text


def new_parser(
    usage_docstring: str,
    recipes: Mapping[str, dict],
    elsewhere: Mapping[str, str] | None = None,
) -> Parser:
    """A parser with the flags of all scripts; each script adds those of its data."""
    parser = Parser(usage_docstring, recipes, elsewhere)
    default = parser.default_of

    add = parser.add_argument_group("method").add_argument
    about = """smr; dividemix: warm-up with CE, no recalibration; ce: plain cross-entropy in every
        epoch (default: smr)"""
    add("--method", choices=("smr", "dividemix", "ce"), help=about)
    about = "loss of the warm-up (default: mixup for smr, ce for dividemix)"
    add("--warmup_loss", choices=("mixup", "ce"), help=about)
    about = f"""a cross-entropy epoch every K epochs after the warm-up, 0 for never
        ({default("recalibrate_every")}; dividemix 0)"""
    add("--recalibrate_every", type=number(int, 0), metavar="K", help=about)
    about = f"epochs of warm-up, before memorizing begins ({default('warm_up')})"
    add("--warm_up", type=number(int, 0), metavar="EPOCHS", help=about)
    about = f"""parameter of mixup's Beta(alpha, alpha), larger ones mix more evenly
        ({default("alpha", "4")})"""
    add("--alpha", type=number(float, 0, open_low=True), help=about)
    about = f"""weight of the unlabeled loss
        ({default("lambda_u", "the published value of the noise cell")})"""
    add("--lambda_u", type=number(float, 0), help=about)
    about = "clean probability above which a sample is labeled (default: 0.5, the likelier side)"
    add("--p_threshold", type=number(float, 0, 1), help=about)
    about = "sharpening temperature of guessed and refined targets (default: 0.5)"
    add("--T", type=number(float, 0, open_low=True), help=about)

    about = """strong: after the warm-up, what is mixed and trained on is distorted as well, and
        targets still come from weak views (default: weak, the published crop and flip)"""
    add("--augment", choices=("weak", "strong"), help=about)

    add = parser.add_argument_group("training").add_argument
    about = f"number of the last epoch; epoch 0 is run too ({default('num_epochs')})"
    add("--num_epochs", type=number(int, 0), help=about)
    about = f"""B: images of a labeled batch; an unlabeled one holds as many, a warm-up batch 2B
        ({default("batch_size")})"""
    add("--batch_size", type=number(int, 2), help=about)
    about = f"first learning rate of SGD ({default('lr')})"
    add("--lr", "--learning_rate", type=number(float, 0, open_low=True), help=about)
    about = f"""from EPOCH on, FACTOR times the first learning rate, as in 80:0.1,140:0.01
        ({default("lr_steps")})"""
    add("--lr_steps", type=lr_steps, metavar="EPOCH:FACTOR,…", help=about)
    about = f"of SGD ({default('weight_decay')})"
    add("--weight_decay", type=number(float, 0), help=about)

    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--id", type=run_id, help="ends the run folder's name (default: none)")
    about = "of noise, networks, batches, mixup and mixtures (default: 123, the published one)"
    add("--seed", type=number(int, 0, 2**32 - 1), help=about)
    about = "auto takes the first of cuda, mps and cpu that is there (default: auto)"
    add("--device", choices=("auto", "cuda", "cpu", "mps"), help=about)
    add("--gpuid", type=card, help="which CUDA card (default: 0)")
    about = "under torchrun on CUDA: BN statistics over the rows of all cards (default: on there)"
    add("--sync_bn", type=switch("sync_bn"), metavar="{off,on}", help=about)
    add("--output", metavar="DIR", help="where the run folder is made (default: ./checkpoint)")
    about = "write last.pt after so many epochs (default: 1, nothing is lost)"
    add("--save_every", type=number(int, 1), metavar="EPOCHS", help=about)
    about = "most suspicious images on the page labels.html, 0 for no page (default: 500)"
    add("--review", type=number(int, 0), metavar="N", help=about)
    add = run.add_mutually_exclusive_group().add_argument
    about = "continue the run that this command line names, or the one at PATH"
    add("--resume", nargs="?", const=True, metavar="PATH", help=about)
    add("--overwrite", action="store_true", help="delete the run that is in the folder")
    about = "only test the checkpoint at PATH, or the last one of a run folder"
    add("--evaluate", metavar="PATH", help=about)

    about = "speed (within rounding; compiled dropout draws anew)"
    add = parser.add_argument_group(about).add_argument
    about = "bf16 autocast (default: bf16 on cuda, off elsewhere, as few CPUs have bf16 units)"
    add("--amp", type=switch("amp"), metavar="{off,bf16}", help=about)
    about = """torch.compile the networks (default: on on cuda; off elsewhere, where the compiler's
        start outlasts a short run)"""
    add("--compile", type=switch("compile"), metavar="{off,on}", help=about)
    about = "memory format of images and weights (default: on, convolutions are faster)"
    add("--channels_last", type=switch("channels_last"), metavar="{off,on}", help=about)
    return parser


def add_data_flags(parser: Parser, about: str, path_about: str) -> Callable:
    """Add the data flags that scripts share; `add_argument` of their group.

    Args: about, what the help says of --dataset; path_about, of --data_path.
    """
    add = parser.add_argument_group("data and networks").add_argument
    add("--dataset", choices=tuple(parser.recipes), help=about)
    add("--data_path", metavar="DIR", help=path_about)
    about = f"""number of classes; of WebVision the first ones, other data sets have theirs
        ({parser.default_of("num_class", "the data set's")})"""
    add("--num_class", type=number(int, 2), help=about)
    about = f"channels of PreAct-ResNet-18's first stage ({parser.default_of('width')})"
    add("--width", type=number(int, 1, 1024), help=about)
    return add


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
        if given.get("augment") == "strong":
            raise InputError("--augment strong with --method ce: it mixes nothing")
    elif method == "dividemix":
        baseline = {"warmup_loss": "ce", "recalibrate_every": 0}
    speed = speed_of(device) | joint_bn(given, device)
    config = Flags(DEFAULTS | speed | recipe | baseline | given)
    if config["compile"] and not can_compile(device):
        raise InputError(
            "--compile on: this machine lacks a C compiler or Python's headers (Python.h, in a "
            "package such as python3-dev); leave it off"
        )
    return config


def contradictions(config: dict, train_images: int) -> list[str]:
    """Lines on values of a configuration that undo each other."""
    last, batch_size, found = config["num_epochs"], config["batch_size"], []
    if config["method"] != "ce" and config["warm_up"] > last:
        found.append(f"the warm-up lasts as long as the run, to epoch {last}: no labels are judged")
    if late := [str(epoch) for epoch, _ in config["lr_steps"] if epoch > last]:
        found.append(f"learning-rate steps at {', '.join(late)} are beyond the last epoch, {last}")
    if batch_size > train_images:
        found.append(f"a batch of {batch_size} is larger than the set of {train_images} images")
    if config["method"] == "dividemix" and (period := config["recalibrate_every"]):
        found.append(
            f"dividemix has no recalibration: with --recalibrate_every {period} this is another "
            "method"
        )
    return found


def speed_of(device: torch.device) -> dict:
    """The flags of speed that suit a device."""
    on_cuda = device.type == "cuda"
    return {"amp": on_cuda, "compile": on_cuda and can_compile(device), "channels_last": True}


def joint_bn(given: dict, device: torch.device) -> dict:
    """`--sync_bn` where it has a meaning, and --compile, which does not go with it.

    Raises InputError.
    """
    if distributed.world_size() == 1 or device.type != "cuda":
        if given.get("sync_bn"):
            raise InputError("--sync_bn on: only under torchrun, on several CUDA cards")
        return {}
    if not given.get("sync_bn", True):
        return {}
    if given.get("compile"):
        raise InputError(
            "--compile on with --sync_bn on: torch compiles no BN over several cards; leave one off"
        )
    return {"sync_bn": True, "compile": False}


def settle_num_class(config: dict, found: int, where: str) -> None:
    """Fill in the number of classes of the data. Raises InputError where a flag says another."""
    if config.setdefault("num_class", found) != found:
        raise InputError(f"--num_class {config['num_class']}: {where} has {found} classes")


def continued(state: dict, given: dict, device: torch.device, where: str) -> dict:
    """The flags of a run that goes on: its checkpoint's, and those given that change no number.

    On another kind of device than the checkpoint's, or on several ranks after one or the other way
    round, the flags of SPEED are left to that.
    Raises InputError that names each flag by which numbers would change.
    """
    stored = OLDER | state["config"]
    several = distributed.world_size() > 1, state.get("ranks", 1) > 1
    moved = device.type != state["device"] or several[0] != several[1]
    free = FREE + (SPEED if moved else ())
    other = [
        f"--{flag} {shown(flag, value)} (the run has {shown(flag, stored.get(flag))})"
        for flag, value in given.items()
        if value != stored.get(flag)
        and (flag not in free or (flag == "num_epochs" and value < stored[flag]))
    ]
    if other:
        raise InputError(f"{where} cannot go on with " + ", ".join(other))
    kept = {flag: value for flag, value in stored.items() if not (moved and flag in SPEED)}
    return kept | given
