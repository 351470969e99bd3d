"""README.md and docs/: their links, files, functions, flags, commands and metrics exist."""

import fnmatch
import importlib
import inspect
import json
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import correct_labels
from smr.config import Config
from smr.flags import flags_of, parse
from smr.methods import METHODS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in REPOSITORY.glob("docs/*.md")))
SCRIPTS = [path.stem for path in REPOSITORY.glob("train_*.py")]
# Names in pages that no code has: a reader's folders, and others' flags (Docker, torchrun, Slurm).
READERS_FILES = "checkpoint/ google_resized_256.tar labels_2.csv dropped_2/ *_list.txt *_kv.txt"
OTHER_FLAGS = (
    "--logdir --nproc_per_node --nnodes --node_rank --master_addr --job --array --gpus --cpus "
    "--time --requeue --signal --open"
)
SUFFIXES = "py|md|toml|ini|txt|json|jsonl|csv|html|png|pt|npy|npz|bin|tar"
TEXTS = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES}
CODE = [
    path.read_text(encoding="utf-8")
    for pattern in ("*.py", "smr/**/*.py", "benchmarks/*.py")
    for path in REPOSITORY.glob(pattern)
]


def blocks_of(text: str, *languages: str) -> list[str]:
    """The contents of a page's fenced blocks of these languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for language, content in blocks if language in languages]


def prose_of(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def quoted_in(text: str) -> list[str]:
    """What is in backticks in a page's prose, without line breaks."""
    return [re.sub(r"\s+", " ", words) for words in re.findall(r"`([^`]+)`", prose_of(text))]


def first_column(page: str, heading: str) -> list[str]:
    """The names in backticks that begin the rows of a section's table."""
    section = TEXTS[page].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def config_class_of(script: str) -> type[Config]:
    module = importlib.import_module(script)
    classes = inspect.getmembers(module, inspect.isclass)
    return next(c for _, c in classes if issubclass(c, Config) and c.__module__ == script)


def existing_flags() -> set[str]:
    owners = [*map(config_class_of, SCRIPTS), *(method.Flags for method in METHODS.values())]
    fields = [each for owner in owners for each in flags_of(owner).values()]
    flags = {name for f in fields for name in (f"--{f.name}", *f.metadata["aliases"])}
    for code in CODE:
        flags |= set(re.findall(r"--[a-z]\w*", code))
    return flags


def training_commands() -> list[str]:
    """The commands of all pages that start a training script; `python` stands for torchrun too."""
    blocks = [block for text in TEXTS.values() for block in blocks_of(text, "", "bash")]
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    lines += [words for text in TEXTS.values() for words in quoted_in(text)]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    prefix = r"^(OMP_NUM_THREADS=1 )?(torchrun (--\S+ )*(?=train_))?"
    plain = [re.sub("^train_", "python train_", re.sub(prefix, "", part)) for part in parts]
    return sorted({c for c in plain if re.match(r"python train_\w+\.py .", c)})


@pytest.mark.parametrize("page", PAGES)
def test_links_files_names_and_flags_exist(page, digits_run):
    text = TEXTS[page]
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(text))):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
            assert file.exists(), target
            assert not anchor or anchor in anchors_of(file.read_text(encoding="utf-8")), target
    quoted = quoted_in(text)
    files = {q for q in quoted if re.fullmatch(rf"[\w./-]+(/|\.({SUFFIXES}))", q)}
    there = {q for q in files if (REPOSITORY / q).exists() or (digits_run / q).exists()}
    there |= {q for q in files if any(q.strip("/") in code for code in CODE)}
    there |= {q for q in files for pattern in READERS_FILES.split() if fnmatch.fnmatch(q, pattern)}
    assert files - there == set()
    dotted = {q for q in quoted if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", q)}
    assert {q for q in dotted - files if not exists(q)} == set()
    flags = set(re.findall(r"(?<![\w-])--[a-z]\w*", text, re.IGNORECASE))
    assert flags - existing_flags() - {*OTHER_FLAGS.split()} == set()


@pytest.mark.parametrize("command", training_commands())
def test_training_commands_are_understood(command):
    _, script, *arguments = shlex.split(command)
    parse(config_class_of(script.removesuffix(".py")), "", arguments)


def test_readme_is_short_and_has_the_set_up_and_the_published_commands():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 200
    assert "pip install -r requirements.txt && python train_cifar.py --dataset digits" in lines
    assert "pip install -r tests/requirements.txt && pytest" in lines
    assert sum(line.startswith("python train_") and "--num_class" in line for line in lines) == 4
    prose = [line for line in prose_of(TEXTS["README.md"]).splitlines() if line[:1] != "|"]
    assert [line for line in prose if len(line) > 112] == []


def test_a_module_imports_only_from_rows_below_its_own_in_readme():
    rows = TEXTS["README.md"].split("\n| module | content |\n")[1].split("\n\n")[0].splitlines()[1:]
    patterns = [(re.findall(r"`([\w/*]+(?:\.py|/))`", row), n) for n, row in enumerate(rows)]

    def row_of(module: str) -> int:
        # The longest pattern counts: smr/logging/console.py, not smr/logging/.
        fits = [
            (len(p), n) for names, n in patterns for p in names if fnmatch.fnmatch(module, f"{p}*")
        ]
        assert fits, f"README has no row for {module}"
        return max(fits)[1]

    for path in {
        *REPOSITORY.glob("*.py"),
        *REPOSITORY.glob("smr/*/*.py"),
        *REPOSITORY.glob("smr/[!_]*.py"),
    }:
        module = str(path.relative_to(REPOSITORY))
        code = path.read_text(encoding="utf-8")
        for package, names in re.findall(r"^from ([\w.]+) import (.*)$", code, re.MULTILINE):
            for name in (package, *(f"{package}.{name.strip()}" for name in names.split(","))):
                imported = name.replace(".", "/") + ".py"
                if (REPOSITORY / imported).exists():
                    assert row_of(imported) >= row_of(module), f"{module} imports {imported}"


def test_records_md_explains_every_metric_tag_and_file(digits_run):
    rows = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"warm-up", "semi-supervised", "recalibration"}
    keys = {key for row in rows for key in row}
    glossary = first_column("docs/records.md", "Glossary of metrics")
    explained = {key.replace("netK", f"net{k}") for key in glossary for k in (1, 2)}
    # Not of this run: a GPU's, and those of datasets with many classes.
    assert (keys - explained, explained - keys) == (set(), {"memory/device_gib", "test/top5"})
    quoted = quoted_in(TEXTS["docs/records.md"])
    events = EventAccumulator(str(digits_run)).Reload().Tags()
    tags = {*events["scalars"], *events["images"], *events["histograms"]}
    assert {"overview/auc", "split/net2/losses_noisy", "label_issues/top"} <= tags
    assert tags - {tag.replace("netK", f"net{k}") for tag in quoted for k in (1, 2)} == set()
    patterns = first_column("docs/records.md", "The run folder")
    files = [path.name for path in digits_run.iterdir() if not path.name.startswith(".")]
    assert [f for f in files if not any(fnmatch.fnmatch(f, each) for each in patterns)] == []
    assert [pattern for pattern in patterns if not list(digits_run.glob(pattern))] == []
    assert digits_run.name == "digits_0.5_sym_smr_seed123"  # the example of the run folder's name


def test_labels_md_explains_labels_csv_and_an_edited_one_becomes_a_noise_file(digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / digits_run.name)
    header, *lines = (run / "labels.csv").read_text("utf-8-sig").splitlines(keepends=True)
    assert first_column("docs/labels.md", "The table") == header.strip().split(",")
    index, file, given, rest = lines[0].split(",", 3)
    other = (int(given) + 1) % 10
    lines[0] = f"{index},{file},{other},{rest}"
    (tmp_path / "edited.csv").write_text("".join([header, *reversed(lines)]))
    assert correct_labels.main([str(run), str(tmp_path / "edited.csv")]) == 0
    before = json.loads((run / "noisy_labels.json").read_text())
    corrected = json.loads((run / "corrected_labels.json").read_text())
    assert corrected == [other, *before[1:]]


def test_method_md_has_the_sections_that_the_code_cites():
    numbers = re.findall(r"^## (\d+)\. ", TEXTS["docs/method.md"], re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 14)]
    pattern = r"[Mm]ethod (\d+(?:(?:, | to | and )\d+)*)"
    cited = [number for code in CODE for number in re.findall(pattern, code)]
    assert {"2", "3", "4", "5", "6"} <= set(re.findall(r"\d+", " ".join(cited))) <= {*numbers}
