"""How well measures of suspicion find wrong labels: real CIFAR-10 images, several noises.

    python benchmarks/label_errors.py --data_path ./data/cifar-10-batches-py \
        --noise_file CIFAR-10_human.pt
    python benchmarks/label_errors.py --cells sym50 --seeds 1 --train_images 2000 --num_epochs 11
    python benchmarks/label_errors.py --table

A cell is a noise and a seed. It trains two networks by SMR, and measures their list as it is today
beside averages over the epochs after the warm-up. Then it trains one network by plain
cross-entropy on each of five folds, with as many image passes as SMR had in all, and scores the
images that each has not seen: what is used without a method against noise. A finished cell is a
line of the results file, and is not run again. Flags that are not below are train_cifar.py's.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.optim import SGD

import smr
import train_cifar
from compare_runs import markdown
from dataloader_cifar import SYNTHETIC_MODES
from smr.data.loader import Batches, Loader
from smr.label_issues.report import Judgment, judge
from smr.recipe import recipe_of
from smr.run import devices, options
from smr.run import run as session

RESULTS = Path(__file__).resolve().parent / "results" / "label_errors" / "cells.jsonl"
CELLS = {
    "sym50": ["--noise_mode", "sym", "--r", "0.5"],
    "asym40": ["--noise_mode", "asym", "--r", "0.4"],
    "aggre": ["--noise_mode", "aggre"],
    "rand1": ["--noise_mode", "rand1"],
    "worst": ["--noise_mode", "worst"],
}
# What a CPU takes: the learning rate falls after two thirds.
SMALL = [
    *("--train_images", "10000", "--width", "8", "--batch_size", "64"),
    *("--num_epochs", "14", "--lr_steps", "10:0.1", "--warm_up", "5", "--recalibrate_every", "0"),
]
# Of the configuration: what one line's figures may be put beside another's by.
SETTINGS = ("train_images", "width", "batch_size", "num_epochs", "lr_steps", "warm_up")
FOLDS = 5
KINDS = {
    "average_precision": "average precision",
    "looks_wrong": "looks wrong: precision / recall / F1",
}


def main(argv: list[str] | None = None) -> int:
    """Run the cells that are not there yet, or print the table; the exit status."""
    parser = options.Parser(__doc__)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="(all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown")
    args, flags = parser.parse_known_args(argv)
    if args.table:
        print(tables(read_lines(args.results)), end="")
        return 0
    with options.one_line_errors("label_errors.py"):
        for seed in args.seeds:
            for cell in args.cells:
                given = [*SMALL, *flags, *CELLS[cell], "--seed", str(seed)]
                run_cell({"cell": cell, "seed": seed}, given, args.results)
    return 0


def read_lines(path: Path) -> list[dict]:
    """The finished cells; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_cell(name: dict, flags: Sequence[str], results: Path) -> None:
    """Measure a cell and add its line to the results, unless it is there. Raises InputError."""
    given = options.given_flags(train_cifar.new_parser().parse_args(flags))
    if given["noise_mode"] in SYNTHETIC_MODES:
        given.pop("noise_file", None)  # is for the other cells
    device = session.device_of(given)
    config = train_cifar.resolve(given, device)
    name = name | {"settings": {key: options.shown(key, config[key]) for key in SETTINGS}}
    if any(name.items() <= line.items() for line in read_lines(results)):
        print(f"{name['cell']} seed {name['seed']}: is there")
        return
    devices.seed_everything(config["seed"])
    loader = train_cifar.make_loader(config, device)
    started = time.process_time()
    figures = measure(loader, recipe_of(config), lambda: train_cifar.build_network(config))
    line = name | figures | {"cpu_seconds": round(time.process_time() - started)}
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name['cell']} seed {name['seed']}: {line['average_precision']}")


def measure(loader: Loader, recipe: smr.Recipe, build_network: Callable[[], nn.Module]) -> dict:
    """Train both ways and judge each measure and rule by the true labels."""
    loader.test_sets = ()  # tested once, at the end
    pair = smr.new_pair(build_network, recipe, loader.noisy_labels.device, channels_last=True)
    margins, shares, passes = [], [], 0
    for result in smr.train(pair, loader, recipe):
        passes += sum(result.metrics[f"train/net{k}/images"] for k in (1, 2))
        print(f"epoch {result.epoch} of {recipe.num_epochs}: {result.kind}", flush=True)
        if result.epoch >= recipe.warm_up:
            margin, share = watch(pair.networks, loader, recipe)
            margins.append(margin)
            shares.append(share)
    judgment = judge(pair, loader, recipe)
    tested, _ = smr.test(pair.networks, loader.run("test"), recipe)
    unseen = out_of_sample(loader, recipe, build_network, passes)
    aum, mean_share = np.mean(margins, axis=0), np.mean(shares, axis=0)
    wrong, given = ~loader.is_clean, loader.noisy_labels.cpu().numpy()
    scores = suspicions(judgment, aum, mean_share) | cross_validated(unseen, given)
    rules = decisions(judgment, aum) | {
        "five folds: another class is likelier": unseen.argmax(axis=1) != given
    }
    return {
        "wrong": round(float(wrong.mean()), 4),
        "test_accuracy": round(tested["accuracy"], 2),
        "five_fold_accuracy": round(
            100 * float((unseen.argmax(axis=1) == loader.clean_labels).mean()), 2
        ),
        "average_precision": {
            name: round(float(average_precision_score(wrong, score)), 4)
            for name, score in scores.items()
        },
        "looks_wrong": {
            name: [round(float(figure), 4) for figure in precision_recall_f1(wrong, chosen)]
            for name, chosen in rules.items()
        },
    }


def watch(
    networks: Sequence[nn.Module], loader: Loader, recipe: smr.Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Of the given labels, not augmented: mean of both networks' logit margins, and probability.

    Float [n] each; the probability is by the mean of both networks' logits.
    """
    margins, shares = [], []
    for logits, labels, _ in smr.score(networks, loader.run("whole"), recipe.amp):
        margins.append(margin_of(logits, labels.expand(len(logits), -1)).mean(dim=0))
        share = torch.softmax(logits.mean(dim=0), dim=1)
        shares.append(share.gather(1, labels[:, None])[:, 0])
    return torch.cat(margins).cpu().numpy(), torch.cat(shares).cpu().numpy()


def margin_of(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of [..., classes]: the label's value minus the largest of the others'."""
    own = values.gather(-1, labels[..., None])
    others = values.scatter(-1, labels[..., None], -torch.inf)
    return own[..., 0] - others.amax(dim=-1)


def out_of_sample(
    loader: Loader, recipe: smr.Recipe, build_network: Callable[[], nn.Module], passes: int
) -> np.ndarray:
    """Float [n, classes]: each image's probabilities by a network that has not seen it.

    Args: passes, how many image passes the training of all folds together may take.
    """
    labels = loader.noisy_labels
    n, device = len(labels), labels.device
    epochs = max(1, round(passes / ((FOLDS - 1) * n)))
    schedule = replace(recipe, method="ce", lr_steps=((2 * epochs // 3, 0.1),))
    columns, found = (labels, torch.arange(n, device=device)), None
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=recipe.seed)
    for seen, held_out in folds.split(np.zeros(n), labels.cpu().numpy()):
        seen, held_out = (torch.from_numpy(rows).to(device) for rows in (seen, held_out))
        network = build_network().to(device, memory_format=torch.channels_last)
        optimizer = SGD(
            network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
        )
        images, size = loader.train_images, recipe.batch_size
        batches = Batches(loader, images, seen, columns, 2 * size, views=1, shuffle=True)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = smr.learning_rate(epoch, schedule)
            smr.cross_entropy_epoch(network, optimizer, batches, schedule)
        batches = Batches(loader, images, held_out, columns, size)
        for (logits,), _, index in smr.score([network], batches, recipe.amp):
            found = logits.new_empty(n, logits.shape[1]) if found is None else found
            found[index] = torch.softmax(logits, dim=1)
    return found.cpu().numpy()


def suspicions(j: Judgment, aum: np.ndarray, mean_share: np.ndarray) -> dict[str, np.ndarray]:
    """Measure → float [n], larger where a label is more suspicious."""
    log_p, given = torch.from_numpy(np.log(j.probability + 1e-30)), torch.from_numpy(j.given)
    ranks = [np.argsort(np.argsort(score)) for score in (j.suspicion, -aum)]
    return {
        "p_clean + p_given / p_predicted (today's)": j.suspicion,
        "margin of log p": -margin_of(log_p, given).numpy(),
        "area under the margin": -aum,
        "mean p_given over epochs": -mean_share,
        "today's rank + the area's": sum(ranks),
        "p_clean + mean p_given": -(j.p_clean.mean(axis=0) + mean_share),
    }


def cross_validated(unseen: np.ndarray, given: np.ndarray) -> dict[str, np.ndarray]:
    """cleanlab's two scores of out-of-sample probabilities, negated."""
    probability, labels = torch.from_numpy(unseen), torch.from_numpy(given)
    return {
        "five folds: normalized margin": -margin_of(probability, labels).numpy(),
        "five folds: self-confidence": -probability.gather(1, labels[:, None])[:, 0].numpy(),
    }


def decisions(j: Judgment, aum: np.ndarray) -> dict[str, np.ndarray]:
    """Rule → bool [n], the labels that look wrong by it."""
    another, p_clean = j.predicted != j.given, j.p_clean.mean(axis=0)
    return {
        "another class, p_clean < 0.5 (today's)": j.looks_wrong,
        "another class, p_clean < 0.3": another & (p_clean < 0.3),
        "another class, p_clean < 0.7": another & (p_clean < 0.7),
        "another class": another,
        "p_clean < 0.5": p_clean < 0.5,
        "area under the margin < 0": aum < 0,
    }


def precision_recall_f1(wrong: np.ndarray, chosen: np.ndarray) -> tuple[float, float, float]:
    """Of a rule's choice; 0 where it is not defined."""
    found = precision_recall_fscore_support(wrong, chosen, average="binary", zero_division=0)
    return found[:3]


def tables(lines: Sequence[dict]) -> str:
    """Markdown: for each settings, mean ± std over seeds of the measures, then of the rules."""

    def settings(line: dict) -> str:
        return ", ".join(f"{key} {value}" for key, value in line["settings"].items())

    text = ""
    for title, group in groupby(sorted(lines, key=settings), settings):
        rows = list(group)
        text += f"{title}\n\n"
        for kind, head in KINDS.items():
            text += table(rows, kind, head) + "\n"
    return text


def table(rows: Sequence[dict], kind: str, head: str) -> str:
    """A line for each measure or rule, with a column for each cell."""
    cells = [[row for row in rows if row["cell"] == cell] for cell in CELLS]
    cells = [found for found in cells if found]
    heads = [
        f"{found[0]['cell']}, {100 * np.mean([row['wrong'] for row in found]):.1f} % wrong "
        f"(seeds {', '.join(str(row['seed']) for row in found)})"
        for found in cells
    ]
    lines = [(head, *heads)]
    for name in rows[0][kind]:
        figures = [np.array([row[kind][name] for row in found]) for found in cells]
        lines.append((name, *map(mean_and_std, figures)))
    return markdown(lines)


def mean_and_std(figures: np.ndarray) -> str:
    """Over the first axis, the seeds; the sample's deviation where there are several."""
    means = np.atleast_1d(figures.mean(axis=0))
    if len(figures) == 1:
        return " / ".join(f"{mean:.3f}" for mean in means)
    stds = np.atleast_1d(figures.std(axis=0, ddof=1))
    return " / ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in zip(means, stds, strict=True))


if __name__ == "__main__":
    sys.exit(main())
