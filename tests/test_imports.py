"""A module imports only from the rows below its own, or from its own row."""

import ast
from fnmatch import fnmatch

from helpers import REPOSITORY

# From the bottom to the top.
ROWS = [
    row.split()
    for row in (
        "PreResNet vgg losses smr.errors smr.files",
        "smr.distributed smr.devices",
        "smr.config",
        "smr.gmm_split smr.metrics",
        "smr.logging.console",
        "smr.data smr.data.*",
        "smr.training smr.networks",
        "smr.evaluate smr.features",
        "smr.methods smr.methods.*",
        "smr.logging smr.logging.*",
        "smr.label_issues smr.label_issues.*",
        "dataloader_* smr.photos smr.run smr.run.*",
        "smr",
        "train_* predict compare_runs correct_labels",
        "benchmarks.*",
    )
]
FILES = [
    path
    for pattern in ("*.py", "smr/**/*.py", "benchmarks/*.py")
    for path in REPOSITORY.glob(pattern)
]
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


def row_of(module: str) -> int:
    """The number of a module's row, from the bottom."""
    return next(i for i, row in enumerate(ROWS) if any(fnmatch(module, name) for name in row))


def imports_of(module: str, inside_functions: bool) -> set[str]:
    """Our modules that a module imports."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    # `from smr.data import loader` runs no more of smr.data than its loader.
    return {name for name in names & MODULES.keys() if not is_package_of(name, names)}


def is_package_of(name: str, names: set[str]) -> bool:
    return any(other.startswith(f"{name}.") and other in MODULES for other in names)


def test_a_module_imports_only_from_the_rows_below_its_own():
    upwards = [
        f"{module} imports {imported}"
        for module in MODULES
        for imported in imports_of(module, inside_functions=False)
        if row_of(imported) > row_of(module)
    ]
    assert upwards == []


def test_methods_and_logging_never_import_the_run():
    for module in MODULES:
        if module.startswith(("smr.methods", "smr.logging", "smr.training", "smr.data")):
            imported = imports_of(module, inside_functions=True)
            assert not {name for name in imported if name.startswith("smr.run")}, module
