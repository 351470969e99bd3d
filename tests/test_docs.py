"""What README.md and docs/ promise: links, files, functions, flags, commands and keys are there."""

import csv
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import correct_labels
import train_animal10N
import train_cifar
import train_clothing1M
import train_webvision

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in REPOSITORY.glob("docs/*.md")))
SCRIPTS = {
    f"{script.__name__}.py": script
    for script in (train_cifar, train_animal10N, train_webvision, train_clothing1M)
}
# Names of files and folders that are in no run folder and not in the repository: a reader's own,
# official data, and what a command of the page makes.
READERS_OWN = {
    *("training/", "testing/", "val_images_256/", "info/", "images/", "checkpoint/"),
    *("annotations/", "google_resized_256.tar"),
    *("CIFAR-10_human.pt", "CIFAR-100_human.pt"),
    *("data_batch_1.bin", "training_batch.bin", "test_batch.bin"),
    *("train_filelist_google.txt", "val_filelist.txt", "synsets.txt"),
    *("noisy_label_kv.txt", "clean_label_kv.txt", "noisy_train_key_list.txt"),
    *("clean_val_key_list.txt", "clean_test_key_list.txt"),
    *("benchmarks/results/", "dropped/"),
    *("corrections.csv", "corrected_labels.json", "corrected_labels.csv"),
    *("labels_2.csv", "dropped_2/", "duplicates.csv"),
}
# Flags of other people's programs.
OTHERS_FLAGS = {
    *("--logdir", "--shm"),
    *("--nproc_per_node", "--nnodes", "--node_rank", "--master_addr"),  # torchrun
    *("--job", "--array", "--gpus", "--cpus", "--time", "--requeue", "--signal", "--open"),  # Slurm
}
SUFFIXES = "py|md|toml|ini|txt|json|jsonl|csv|html|png|pt|npy|npz|bin|tar"


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks_of(text: str, *languages: str) -> list[str]:
    """The contents of a page's fenced blocks of these languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for language, content in blocks if language in languages]


def prose_of(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def quoted_in(text: str) -> list[str]:
    """What stands in backticks in a page's prose, without line breaks."""
    return [re.sub(r"\s+", " ", words) for words in re.findall(r"`([^`]+)`", prose_of(text))]


def commands_of(text: str) -> list[str]:
    """A page's command lines, one for each part of a `&&`, in blocks and in backticks."""
    blocks = blocks_of(text, "", "bash")
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines + quoted_in(text) for part in line.split("&&")]


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    """The relative links of a page that lead nowhere, to a file or to a heading."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(text))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        found = file.exists()
        if found and anchor:
            found = anchor in anchors_of(text if not path else file.read_text(encoding="utf-8"))
        if not found:
            broken.append(target)
    return broken


def missing_files(text: str, run: Path) -> list[str]:
    """Files and folders in backticks that are neither in the repository nor in the run folder."""
    named = [q for q in quoted_in(text) if re.fullmatch(rf"[\w./-]+(/|\.({SUFFIXES}))", q)]
    there = [name for name in named if any((place / name).exists() for place in (REPOSITORY, run))]
    return sorted({*named} - {*there} - READERS_OWN)


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if part in getattr(found, "__annotations__", {}):
                return part == parts[-1]  # a field, which has no attributes to look for
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def missing_names(text: str) -> list[str]:
    """Dotted names in backticks, `module.function`, that Python does not find."""
    dotted = [q for q in quoted_in(text) if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", q)]
    return [q for q in dotted if not re.search(rf"\.({SUFFIXES})$", q) and not exists(q)]


def flags_of_all_programs() -> set[str]:
    parsers = [script.new_parser() for script in SCRIPTS.values()]
    flags = {flag for p in parsers for action in p._actions for flag in action.option_strings}
    for program in [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("benchmarks/*.py")]:
        flags |= set(re.findall(r"--[a-z]\w*", program.read_text(encoding="utf-8")))
    return flags


def unknown_flags(text: str) -> set[str]:
    """Flags that a page names and no program has."""
    named = re.findall(r"(?<![\w-])--[a-z]\w*", text, re.IGNORECASE)
    return set(named) - flags_of_all_programs() - OTHERS_FLAGS


def long_lines(text: str) -> list[str]:
    """Lines of more than 110 characters that are no table, no command and no address."""
    lines = prose_of(text).splitlines()
    return [
        line for line in lines if len(line) > 110 and not line.startswith("|") and "://" not in line
    ]


def glossary_keys(text: str) -> set[str]:
    """The keys that records.md explains; netK stands for both networks."""
    section = text.split("\n## Glossary of metrics\n")[1].split("\n## ")[0]
    keys = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    return {key.replace("netK", f"net{k}") for key in keys for k in (1, 2)}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run on digits that has every kind of epoch of the method."""
    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("run")
    size = ["--dataset", "digits", "--width", "2", "--batch_size", "256"]
    length = ["--num_epochs", "4", "--warm_up", "1", "--recalibrate_every", "4"]
    assert train_cifar.main([*size, *length, "--output", str(output)]) == 0
    (folder,) = output.iterdir()
    return folder


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page, run):
    assert missing_files(text_of(page), run) == []


@pytest.mark.parametrize("page", PAGES)
def test_functions_and_classes_are_there(page):
    assert missing_names(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_flags_are_there(page):
    assert unknown_flags(text_of(page)) == set()


def test_lines_are_short():
    assert long_lines(text_of("README.md")) == []


def training_commands() -> list[str]:
    """Lines that start a training script, by python or by torchrun; `python` stands for both."""
    found = [command for page in PAGES for command in commands_of(text_of(page))]
    plain = [re.sub(r"^(OMP_NUM_THREADS=1 |torchrun (--\S+ )*(?=train_))", "", c) for c in found]
    plain = [re.sub("^train_", "python train_", command) for command in plain if " " in command]
    return sorted({command for command in plain if command.startswith("python train_")})


@pytest.mark.parametrize("command", training_commands())
def test_training_commands_are_understood(command):
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    SCRIPTS[script].new_parser().parse_args(arguments)


def test_readme_keeps_its_length_its_set_up_and_the_published_commands():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 220
    lines = text.splitlines()
    assert "pip install -r requirements.txt && python train_cifar.py --dataset digits" in lines
    assert "pip install -r tests/requirements.txt && pytest" in lines
    published = [
        line for line in lines if line.startswith("python train_") and "--num_class" in line
    ]
    assert len(published) == 4


def test_readme_names_every_room():
    table = text_of("README.md").split("\n| room | holds |\n")[1].split("\n\n")[0]
    rooms = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("smr/*.py")]
    named = {str(path.relative_to(REPOSITORY)) for path in rooms} - {"smr/__init__.py"}
    named |= {f"{path.parent.name}: {path.stem}" for path in REPOSITORY.glob("smr/*/[!_]*.py")}
    folders = ("run", "record")
    inside = {
        f"{folder}: {name}"
        for folder in folders
        for line in table.splitlines()
        if f"`smr/{folder}/`" in line
        for name in re.findall(r"`(\w+)`", line)
    }
    said = set(re.findall(r"`([\w/]+\.py)`", table)) | inside
    assert {name for name in named if not name.startswith("data: ")} == said


def test_the_method_example_trains_three_epochs(capsys):
    (example,) = blocks_of(text_of("README.md"), "python")
    exec(example, {})
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [kind for _, kind, _ in shown] == ["warm-up"] * 2 + ["semi-supervised"] * 2
    assert all(10 < float(accuracy) <= 100 for _, _, accuracy in shown)


def test_the_glossary_explains_every_metric_and_no_other(rows):
    kinds = {row["kind"] for row in rows}
    assert kinds == {"warm-up", "semi-supervised", "recalibration"}
    keys = {key for row in rows for key in row}
    explained = glossary_keys(text_of("docs/records.md"))
    assert keys - explained == set()
    # Of a CUDA card, and of data sets with many classes.
    assert explained - keys == {"memory/device_gib", "test/top5"}


def test_every_tag_in_tensorboard_is_explained(run):
    text = text_of("docs/records.md")
    named = {tag.replace("netK", f"net{k}") for tag in quoted_in(text) for k in (1, 2)}
    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()
    shown = {*tags["scalars"], *tags["images"], *tags["histograms"]}
    assert {"overview/auc", "split/net2/losses_noisy", "label_issues/top"} <= shown
    assert shown - named == set()


def test_the_table_of_files_names_what_a_run_leaves(run):
    section = text_of("docs/records.md").split("\n## The run folder\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    left = [path.name for path in run.iterdir() if not path.name.startswith(".")]
    unnamed = [name for name in left if not any(Path(name).match(pattern) for pattern in named)]
    assert unnamed == []
    assert [pattern for pattern in named if not list(run.glob(pattern))] == []
    assert run.name == "digits_0.5_sym_smr_seed123"  # the example of the run folder's name


def test_the_table_of_labels_csv_has_its_columns(run):
    section = text_of("docs/labels.md").split("\n## The table\n")[1].split("\n## ")[0]
    with open(run / "labels.csv", encoding="utf-8-sig") as file:
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == next(csv.reader(file))


def test_an_edited_list_becomes_labels_that_noise_file_takes(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / run.name)
    header, *lines = (run / "labels.csv").read_text("utf-8-sig").splitlines(keepends=True)
    index, file, given, name, rest = lines[0].split(",", 4)
    other = (int(given) + 1) % 10
    lines[0] = f"{index},{file},{other},{name},{rest}"
    (tmp_path / "edited.csv").write_text("".join([header, *reversed(lines)]))
    assert correct_labels.main([str(folder), str(tmp_path / "edited.csv")]) == 0
    before = json.loads((folder / "noisy_labels.json").read_text())
    corrected = json.loads((folder / "corrected_labels.json").read_text())
    assert corrected == [other, *before[1:]]


def test_the_code_of_labels_md_computes_the_average_precision(run, capsys, monkeypatch):
    blocks = blocks_of(text_of("docs/labels.md"), "python")
    (code,) = (block for block in blocks if "average_precision_score" in block)
    monkeypatch.chdir(run)
    exec(code, {})
    first, _ = map(float, capsys.readouterr().out.split())
    with open(run / "labels.csv", encoding="utf-8-sig") as file:
        table = sorted(csv.DictReader(file), key=lambda row: int(row["rank"]))
    wrong = [row["given"] != row["true"] for row in table]
    found, precisions = 0, []
    for rank, is_wrong in enumerate(wrong, start=1):
        found += is_wrong
        precisions += [found / rank] if is_wrong else []
    assert first == pytest.approx(sum(precisions) / found, abs=1e-3)


@pytest.fixture(scope="module")
def disordered(tmp_path_factory):
    """A run of 108 labels whose class names are in another order than the alphabet; 7 are wrong."""
    folder, true = tmp_path_factory.mktemp("disordered"), np.arange(108) % 3
    labels, wrong = true.copy(), np.arange(0, 105, 15)
    labels[wrong] = (true[wrong] + 1) % 3
    pred_probs = np.full((108, 3), 0.02, np.float32)
    pred_probs[np.arange(108), true] = 0.96
    np.save(folder / "pred_probs.npy", pred_probs)
    head = "index,given,given_name,p_clean\n"
    rows = [
        f"{i},{label},{('2', '10', 'a')[label]},{label == true[i]:d}\n"
        for i, label in enumerate(labels)
    ]
    (folder / "labels.csv").write_text(head + "".join(rows), encoding="utf-8-sig")
    return folder, wrong.tolist()


@pytest.mark.parametrize("tool", ["cleanlab.filter", "Datalab", "smr.label_issues.scores"])
def test_the_snippets_of_labels_md_find_the_wrong_labels(disordered, tool, capsys, monkeypatch):
    for module in {"Datalab": ["cleanlab", "datasets"], "cleanlab.filter": ["cleanlab"]}.get(
        tool, []
    ):
        pytest.importorskip(module)
    (code,) = (
        block
        for page in PAGES
        for block in blocks_of(text_of(page), "python")
        if f"import {tool}" in block or f"from {tool}" in block or f"import {tool}\n" in block
    )
    folder, wrong = disordered
    monkeypatch.chdir(folder)
    exec(code, {})
    printed = [int(number) for number in re.findall(r"\d+", capsys.readouterr().out)]
    assert printed[0] == len(wrong) if "smr" in tool else sorted(printed) == wrong


def test_every_cleanlab_snippet_of_the_documents_is_run_here():
    blocks = [block for page in PAGES for block in blocks_of(text_of(page), "python")]
    assert sum("cleanlab import" in block or "cleanlab.filter" in block for block in blocks) == 2


def test_method_md_has_the_sections_that_the_code_cites():
    numbers = re.findall(r"^## (\d+)\. ", text_of("docs/method.md"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 12)]
    code = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "smr").rglob("*.py")]
    cited = {
        number
        for path in code
        for numbers in re.findall(
            r"\(?[Mm]ethod (\d+(?:(?:, | to | and )\d+)*)", path.read_text(encoding="utf-8")
        )
        for number in re.findall(r"\d+", numbers)
    }
    assert {"1", "2", "3", "4", "5", "6"} <= cited <= set(numbers)
