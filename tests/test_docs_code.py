"""The Python code in README.md and docs/ runs and prints what the pages say."""

import csv
import inspect
import re

import numpy as np
import pytest
import torch
from test_docs import TEXTS, blocks_of

import train_cifar


def test_the_python_code_of_readme_is_the_main_of_train_cifar_and_an_example_that_trains(capsys):
    main, example = blocks_of(TEXTS["README.md"], "python")
    body = inspect.getsource(inspect.unwrap(train_cifar.main))
    assert inspect.cleandoc(main) in inspect.cleandoc(body.split('"""\n')[1])
    torch.manual_seed(0)
    np.random.seed(0)
    # On fewer images, to be quick.
    quick = example.replace('"", None)', '"", None, train_images=600)')
    assert quick != example
    exec(quick, {})
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [kind for _, kind, _ in shown] == ["warm-up"] * 2 + ["semi-supervised"] * 2
    assert 20 < float(shown[-1][2]) <= 100


def snippet(words: str) -> str:
    """The Python code of the pages that imports this."""
    blocks = [block for text in TEXTS.values() for block in blocks_of(text, "python")]
    (code,) = (block for block in blocks if re.search(rf"(from|import) {words}", block))
    return code


def test_the_average_precision_of_labels_md_is_that_of_the_rank(digits_run, capsys, monkeypatch):
    monkeypatch.chdir(digits_run)
    exec(snippet("average_precision_score|from sklearn.metrics import average"), {})
    first, _ = map(float, capsys.readouterr().out.split())
    with open("labels.csv", encoding="utf-8-sig") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["rank"]))
    wrong = np.array([row["given"] != row["true"] for row in rows])
    precision = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    assert first == pytest.approx(precision[wrong].mean(), abs=1e-3)


@pytest.mark.parametrize("tool", ["cleanlab.filter", "cleanlab import Datalab", "smr.label_issues"])
def test_the_snippets_of_labels_md_find_the_wrong_labels(tool, tmp_path, capsys, monkeypatch):
    for module in ("cleanlab", "datasets") if "cleanlab" in tool else ():
        pytest.importorskip(module)
    # Seven wrong labels of 108; the class names are not in alphabetical order.
    true, wrong = np.arange(108) % 3, np.arange(0, 105, 15)
    labels = true.copy()
    labels[wrong] = (true[wrong] + 1) % 3
    np.save(tmp_path / "pred_probs.npy", np.where(np.eye(3)[true] == 1, 0.96, 0.02))
    rows = [f"{i},{y},{('2', '10', 'a')[y]},{y == true[i]:d}\n" for i, y in enumerate(labels)]
    table = "index,given,given_name,p_clean\n" + "".join(rows)
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    exec(snippet(tool), {})
    printed = [int(number) for number in re.findall(r"\d+", capsys.readouterr().out)]
    assert printed[0] == len(wrong) if "smr" in tool else sorted(printed) == wrong.tolist()
