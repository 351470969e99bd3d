"""Find label errors in photo folders on frozen features: SMR beside cleanlab, in one run.

    pip install 'cleanlab[datalab]' timm
    python benchmarks/label_errors.py photos_rand1 photos_worst --weights lite0.pth

Each folder is one that train_folder.py reads, with the true class in the names of the training
photos: `<index>_<true class>.jpg`. The last word of its name is the noise. Folders of the same
photos, with other labels, share their features by file name. The features stay in --features. A
line per way and folder is added to --results; the table of all lines is printed.
"""

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import cross_val_predict
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare_runs
import train_folder
from smr import devices, features
from smr.config import configure
from smr.data.fingerprint import checksum
from smr.data.loader import Loader
from smr.errors import InputError
from smr.evaluate import evaluate
from smr.flags import Parser
from smr.label_issues.report import compute_label_issues
from smr.label_issues.scores import self_confidence
from smr.methods import new_method
from smr.photos import build_network
from smr.run.command import command
from smr.training import new_pair

RESULTS = Path(__file__).resolve().parent / "results" / "label_errors" / "frozen.jsonl"
# C of logistic regression on standardized features; 1 is scikit-learn's default. On raw features
# the best C gives the same figures within .01.
GRID = (1.0, 0.01, 0.003, 0.001, 3e-4, 1e-4)
NEIGHBORS = 20
COLUMNS = {"accuracy": ".1f", "ap": ".3f", "p100": ".2f", "f1": ".3f", "cpu_seconds": ".1f"}
TITLES = ("test accuracy", "AP", "precision at 100", "F1 of the rule", "CPU seconds")


@command
def main(argv: list[str] | None = None) -> int:
    """Measure every way on the folders, add the lines and print the table; the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("photos", nargs="*", type=Path, help="folders of the same photos")
    parser.add_argument("--network", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--weights", default="", metavar="FILE")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2, help="runs of the heads")
    parser.add_argument("--features", type=Path, default=Path("checkpoint/features_label_errors"))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(argv)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    known = None
    for path in args.photos:
        config = configured(path, args)
        devices.seed_everything(config.seed)
        photos = train_folder.make_loader(config, torch.device("cpu"))
        names = [Path(file).name for file in photos.files]
        if known is None:
            known, (extracted_loader, seconds) = names, extracted(config, photos, args.features)
        loader = features_of(photos, names, known, extracted_loader)
        folder = {"photos": path.name, "noise": path.name.rpartition("_")[2], "count": len(names)}
        for row in measured(loader, true_classes(photos), args, path):
            line = json.dumps(folder | row | {"extraction_cpu_seconds": seconds})
            print(line, flush=True)
            with open(args.results, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    print(table(read_rows(args.results)))
    return 0


def configured(path: Path, args, **changes):
    """The configuration of train_folder.py for this folder, on the CPU."""
    flags = {"network": args.network, "image_size": args.image_size, "device": "cpu"}
    flags |= {"weights": args.weights} if args.weights else {"pretrained": True}
    return configure(train_folder.FolderConfig, data_path=str(path), **flags | changes)


def true_classes(photos: Loader) -> np.ndarray:
    """int64 [n], from the file names. Raises InputError."""
    names = [Path(file).stem.partition("_")[2] for file in photos.files]
    if unknown := set(names) - set(photos.class_names):
        raise InputError(f"no class '{min(unknown)}': expected <index>_<true class>.jpg")
    return np.array([photos.class_names.index(name) for name in names])


def extracted(config, photos: Loader, folder: Path) -> tuple[features.FeatureLoader, float]:
    """The features of a folder's photos, computed once, and the CPU seconds."""
    backbone = features.FrozenBackbone(build_network(config))
    files = sorted((Path(f).name, checksum(Path(config.data_path, f))) for f in photos.files)
    data = json.loads(json.dumps({"files": files, "order": list(photos.files)}))
    started = time.process_time()
    loader = backbone.extract(photos, config.feature_views, folder, data)
    return loader, round(time.process_time() - started, 1)


def features_of(photos: Loader, names: list, known: list, loader) -> features.FeatureLoader:
    """The features of photos that have other labels, by file name. Raises InputError."""
    places = {name: place for place, name in enumerate(known)}
    if set(names) != set(known):
        raise InputError("these folders hold other photos: start a run, with its --features, each")
    train = loader.train_images[[places[name] for name in names]]
    tests = {name: images[:, 0] for name, (images, _) in loader.tests.items()}
    return features.FeatureLoader(photos, train, tests)


def figures(issue: np.ndarray, quality: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """AP, precision at 100 and at the number of issues of a ranking by quality; F1 of a rule."""
    order = np.argsort(quality, kind="stable")
    found = {
        "ap": average_precision_score(issue, -quality),
        "p100": issue[order[:100]].mean(),
        "p_noisy": issue[order[: issue.sum()]].mean(),
        "f1": f1_score(issue, chosen),
    }
    return {name: float(value) for name, value in found.items()}


def measured(loader, true: np.ndarray, args, path: Path) -> Iterator[dict]:
    """A row of each way."""
    labels = loader.noisy_labels.numpy()
    issue = labels != true
    for method, name in (
        ("smr", "SMR, frozen backbone"),
        ("ce", "cross-entropy on the same heads"),
    ):
        for seed in range(1, args.seeds + 1):
            config = configured(path, args, seed=seed, method=method)
            yield timed(name, issue, partial(heads, loader, config)) | {"seed": seed}
    values, tests = loader.train_images.float(), loader.tests["test"][0][:, 0].float()
    truth = loader.tests["test"][1].numpy()
    for name, train in {"": values[:, 0], ", mean of the views": values.mean(dim=1)}.items():
        data = standardized(train, labels, tests, truth)
        for row in regressions(data, issue, GRID):
            yield row | {"way": row["way"] + name}
    datalab = partial(cleanlab, *data, 1.0, lab=True)
    yield timed("cleanlab's Datalab, C = 1, mean of the views", issue, datalab)
    yield timed(f"votes of {NEIGHBORS} neighbors", issue, partial(votes, values[:, 0], labels))


def standardized(train: Tensor, labels: np.ndarray, tests: Tensor, truth: np.ndarray) -> tuple:
    """(x, labels, x_test, true test labels): each feature with mean 0 and deviation 1."""
    train, tests = train.numpy(), tests.numpy()
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    return (train - mean) / scale, labels, (tests - mean) / scale, truth


def regressions(data: tuple, issue: np.ndarray, grid: Sequence[float]) -> list[dict]:
    """cleanlab's rows on `standardized` features: C = 1, and the C of the grid with the best AP."""
    rows = [timed("", issue, partial(cleanlab, *data, c)) | {"C": c} for c in grid]
    best = max(rows, key=lambda row: row["ap"])
    return [
        rows[0] | {"way": "cleanlab, C = 1"},
        best | {"way": "cleanlab, C tuned on truth"},
    ]


def timed(name: str, issue: np.ndarray, way: Callable) -> dict:
    """The row of a way, which returns the test accuracy, label quality and label issues."""
    started = time.process_time()
    accuracy, quality, chosen = way()
    row = {"noise_rate": issue.mean(), "accuracy": accuracy}
    row |= {"cpu_seconds": time.process_time() - started} | figures(issue, quality, chosen)
    return {"way": name} | {k: v if v is None else round(float(v), 4) for k, v in row.items()}


def heads(loader, config) -> tuple[float, np.ndarray, np.ndarray]:
    """Two linear heads, trained and read as train_folder.py does."""
    devices.seed_everything(config.seed)
    loader.generator.manual_seed(config.seed)
    width, classes = loader.train_images.shape[2], len(loader.class_names)
    pair = new_pair(lambda: torch.nn.Linear(width, classes), config, loader.device)
    method = new_method(config, pair, loader)
    for epoch in range(config.num_epochs + 1):
        method.train_epoch(epoch)
    issues = compute_label_issues(pair, loader, method, config.amp, frozen=True)
    accuracy = evaluate(pair.networks, loader.run("test"), config)[0]["accuracy"]
    return accuracy, issues.quality, issues.is_issue


def cleanlab(x, labels, x_test, truth, c: float, lab=False) -> tuple[float, np.ndarray, np.ndarray]:
    """cleanlab on logistic regression in five folds: self-confidence and its default rule.

    Args: lab, as its Datalab finds label issues.
    """
    try:
        from cleanlab import Datalab
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        message = "cleanlab is missing; pip install 'cleanlab[datalab]' timm"
        raise InputError(message) from error
    model = LogisticRegression(C=c, max_iter=100)
    probs = cross_val_predict(model, x, labels, cv=5, method="predict_proba")
    accuracy = 100 * float((model.fit(x, labels).predict(x_test) == truth).mean())
    if lab:
        datalab = Datalab({"label": labels}, label_name="label", verbosity=0)
        one_job = {"clean_learning_kwargs": {"find_label_issues_kwargs": {"n_jobs": 1}}}
        with redirect_stdout(io.StringIO()):
            datalab.find_issues(pred_probs=probs, issue_types={"label": one_job})
        issues = datalab.get_issues("label")
        return accuracy, issues["label_score"].to_numpy(), issues["is_label_issue"].to_numpy()
    quality = get_label_quality_scores(labels, probs, method="self_confidence")
    return accuracy, quality, find_label_issues(labels, probs, n_jobs=1)


def votes(x: torch.Tensor, labels: np.ndarray) -> tuple[None, np.ndarray, np.ndarray]:
    """The share of the label among the nearest photos, by cosine."""
    x = torch.nn.functional.normalize(x, dim=1)
    nearest = []
    for rows in torch.arange(len(x)).split(1000):
        similarity = x[rows] @ x.T
        similarity[torch.arange(len(rows)), rows] = -1  # no photo votes for itself
        nearest.append(similarity.topk(NEIGHBORS).indices)
    nearest = torch.cat(nearest).numpy()
    classes = np.eye(labels.max() + 1)[labels]
    shares = classes[nearest].mean(axis=1)
    quality = self_confidence(labels, shares)
    return None, quality, quality < shares.max(axis=1) / 2


def read_rows(path: Path) -> list[dict]:
    """The lines of the results."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict]) -> str:
    """A Markdown table: a line per noise and way, the mean over folders and seeds."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["noise"], row["way"]), []).append(row)
    lines = [("noise", "way", *TITLES)]
    for (noise, way), group in sorted(groups.items(), key=lambda item: item[0][0]):
        rate = 100 * np.mean([row["noise_rate"] for row in group])
        cells = [
            "" if group[0][name] is None else format(np.mean([row[name] for row in group]), form)
            for name, form in COLUMNS.items()
        ]
        lines.append((f"{noise}, {rate:.1f} % wrong", way, *cells))
    return compare_runs.markdown(lines)


if __name__ == "__main__":
    sys.exit(main())
