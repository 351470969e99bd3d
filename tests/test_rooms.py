"""The house's plan: imports run one way, and every room says its purpose and stays small."""

import ast
from fnmatch import fnmatch

import pytest
from helpers import REPOSITORY

# From the bottom to the top: a file knows only of lines below its own.
PLAN = (
    ("smr.errors", "smr.files", "smr.recipe", "losses", "PreResNet", "vgg"),
    ("smr.ranks",),
    ("smr.console", "smr.meters"),
    ("smr.steps", "smr.divide"),
    ("smr.passes",),
    ("smr.data.images", "smr.data.distortions", "smr.data.listings", "smr.data.pickles"),
    ("smr.data.loaders", "smr.data.image_files"),
    ("smr.data.cifar_files", "smr.data.streams"),
    ("smr.data.label_lists",),
    ("dataloader_*",),
    ("smr.networks", "smr.method"),
    ("smr.record.pictures", "smr.record.log", "smr.record.review"),
    ("smr.record.board", "smr.record.labels"),
    ("smr.record.records", "smr.record.decisions"),
    ("smr.run.devices", "smr.run.checkpoints", "smr.run.saving", "smr.run.folders"),
    ("smr.run.options",),
    ("smr.run.session", "smr.run.serving", "smr.run.photos"),
    ("smr",),  # hands on what a program of one's own is built from
    ("train_*", "compare_runs", "correct_labels", "predict"),
)
# What a room of the package knows of the user's top level, whose files may be replaced.
TOP_LEVEL_KNOWN = {"smr.steps": {"losses"}, "smr.networks": {"PreResNet"}}
ROOMS = sorted((REPOSITORY / "smr").rglob("*.py"))
EMPTY = {"smr.data", "smr.record", "smr.run"}
LONGEST = 400


def name_of(path) -> str:
    """smr.data.loaders of smr/data/loaders.py, smr.data of smr/data/__init__.py."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in [*ROOMS, *REPOSITORY.glob("*.py")]}


def floor_of(name: str) -> int:
    """The line of PLAN that a file stands in; -1 where it has no place."""
    found = [i for i, line in enumerate(PLAN) if any(fnmatch(name, place) for place in line)]
    return found[0] if found else -1


FLOOR = {name: floor_of(name) for name in FILES if name not in EMPTY}


def known_to(tree: ast.Module) -> set[str]:
    """The files of the project that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in FILES else node.module)
    return names & FLOOR.keys()


def wrong_imports(name: str, tree: ast.Module) -> list[str]:
    """What is wrong with a file's imports, in words."""
    known = known_to(tree)
    found = [f"{name} knows {other}" for other in known if FLOOR[other] >= FLOOR[name]]
    if name.startswith("smr"):
        strangers = {other for other in known if not other.startswith("smr")}
        found += [f"{name} knows {x}" for x in strangers - TOP_LEVEL_KNOWN.get(name, set())]
    return found


def test_every_file_has_its_place_in_the_plan():
    assert [name for name, floor in FLOOR.items() if floor < 0] == []
    assert FLOOR.keys() > {"smr.method", "smr.divide", "losses", "dataloader_cifar", "train_cifar"}


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_no_room_knows_one_above_or_beside_it(name):
    assert wrong_imports(name, ast.parse(FILES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("smr.divide", "from smr.method import Pair"),
        ("smr.divide", "from smr.steps import mix"),
        ("smr.data.images", "import smr.data.loaders"),
        ("smr.data.loaders", "import smr"),
        ("smr.method", "def late():\n    from smr.record import log"),
        ("smr.passes", "from smr.method import Pair"),
        ("smr.method", "from losses import SemiLoss"),
        ("smr.record.labels", "import dataloader_cifar"),
        ("smr.record.records", "from smr.run.devices import versions"),
        ("dataloader_cifar", "from smr.method import train"),
        ("train_cifar", "import train_animal10N"),
    ],
)
def test_a_wrong_import_is_seen(name, line):
    assert len(wrong_imports(name, ast.parse(line))) == 1


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_every_room_says_its_purpose_and_is_short_enough_to_read(path):
    text = path.read_text(encoding="utf-8")
    purpose = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert len(purpose.split()) > 3
    assert purpose.endswith((".", "`train` and its parts."))
    assert len(text.splitlines()) <= LONGEST
