"""Table, paired comparisons and picture of the lines that `reproduce.py --frozen` added.

    python benchmarks/frozen_table.py
    python benchmarks/frozen_table.py --results FILE.jsonl --output FILE.png

A cell of the table is a mean ± standard deviation over seeds. A comparison is the difference of two
methods at the same noise and seed: its mean over the noises, the standard error of that mean, and
in how many noises, and pairs of runs, the first method is ahead.
"""

import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import label_errors
from plot_results import COLORS, Color, Panel, draw_legend, ticks
from reproduce import CELLS, RESULTS

from compare_runs import markdown, mean_and_deviation
from smr.flags import Parser
from smr.logging.figures import blank, write
from smr.run.command import command

COLUMNS = {
    "best": ("best %", ".2f"),
    "last": ("last %", ".2f"),
    "last_ten": ("last ten %", ".2f"),
    "ap": ("AP", ".3f"),
    "p100": ("precision at 100", ".3f"),
    "p_noisy": ("at the noisy labels", ".3f"),
    "f1": ("F1", ".3f"),
    "seconds": ("seconds", ".0f"),
}
METHODS = {name: COLORS[name] for name in list(COLORS)[:5]} | {
    "elr": (230, 159, 0),
    "cleanlab, C = 1": (150, 150, 150),
    "cleanlab, C tuned on truth": (86, 180, 233),
    "votes": (190, 190, 120),
}
CLAIMS = [("smr", other) for other in METHODS if other not in ("smr", "votes")]
PANELS = {"last": "test accuracy, last epoch, %", "ap": "AP"}
COMPARED = {"last": ("last %", "+.2f"), "last_ten": ("last ten %", "+.2f"), "ap": ("AP", "+.4f")}
WIDTH, LEFT, TOP, HEIGHT, BELOW = 2400, 170, 250, 620, 130

# The figures of a method at a noise: seed → line.
Lines = dict[tuple[str, str], dict[int, dict]]


def grouped(lines: list[dict]) -> Lines:
    """The lines by (cell, method) and seed, in the order of CELLS and METHODS."""
    groups: Lines = {(cell, method): {} for cell in CELLS for method in METHODS}
    for line in lines:
        groups[line["cell"], line["method"]][line["seed"]] = line
    return {key: group for key, group in groups.items() if group}


def table(groups: Lines) -> str:
    """A Markdown table with a row for each noise and method."""
    rows = [("noise", "method", "seeds", *(title for title, _ in COLUMNS.values()))]
    for (cell, method), group in groups.items():
        columns = []
        for name, (_, form) in COLUMNS.items():
            values = [line[name] for line in group.values() if line.get(name) is not None]
            columns.append(mean_and_deviation(values, form) if values else "–")
        rows.append((cell, method, str(len(group)), *columns))
    return markdown(rows)


def differences(groups: Lines, first: str, second: str, name: str) -> dict[str, list[float]]:
    """first - second of each seed that both have, by noise."""
    found = {}
    for cell in CELLS:
        one, other = (groups.get((cell, method), {}) for method in (first, second))
        pairs = [(one[s].get(name), other[s].get(name)) for s in sorted(one.keys() & other.keys())]
        values = [a - b for a, b in pairs if a is not None and b is not None]
        found |= {cell: values} if values else {}
    return found


def comparisons(groups: Lines) -> str:
    """A Markdown table of CLAIMS, on the figures of COMPARED."""
    rows = [("comparison", "figure", "difference", "noises ahead", "pairs ahead")]
    for first, second in CLAIMS:
        for name, (title, form) in COMPARED.items():
            cells = differences(groups, first, second, name)
            if len(cells) < 2:
                continue
            means = [mean(values) for values in cells.values()]
            pairs = [value for values in cells.values() for value in values]
            error = format(stdev(means) / len(means) ** 0.5, form[1:])
            ahead = f"{sum(value > 0 for value in means)} of {len(means)}"
            of_pairs = f"{sum(value > 0 for value in pairs)} of {len(pairs)}"
            difference = f"{format(mean(means), form)} ± {error}"
            rows.append((f"{first} – {second}", title, difference, ahead, of_pairs))
    return markdown(rows)


def draw(groups: Lines) -> Image.Image:
    """Test accuracy of the last epoch, and AP: a dot for each noise, method and seed."""
    picture, pen = blank(WIDTH, TOP + len(PANELS) * (HEIGHT + BELOW))
    colors = {name: color for name, color in METHODS.items() if any(m == name for _, m in groups)}
    draw_legend(pen, colors, "dot: a seed; bar: the mean over the seeds")
    for row, (name, title) in enumerate(PANELS.items()):
        top = TOP + row * (HEIGHT + BELOW)
        draw_panel(picture, (LEFT, top, WIDTH - 30, top + HEIGHT), groups, name, colors)
        write(pen, (LEFT, top - 16), title, 36, anchor="lb")
    return picture.resize((WIDTH // 2, picture.height // 2), Image.Resampling.LANCZOS)


def draw_panel(
    picture: Image.Image, box: tuple, groups: Lines, name: str, colors: dict[str, Color]
) -> None:
    """The dots of one figure; the noises are the columns."""
    values = {
        key: np.array([line[name] for line in group.values()])
        for key, group in groups.items()
        if all(line.get(name) is not None for line in group.values())
    }
    shown = np.concatenate(list(values.values()))
    cells = list(dict.fromkeys(cell for cell, _ in values))
    panel = Panel(picture, box, np.arange(len(cells) + 1.0), ticks(shown.min(), shown.max(), 8))
    panel.draw_axes([*cells, ""])
    pen, order = ImageDraw.Draw(picture), list(colors)
    for (cell, method), seeds in values.items():
        at = np.full(len(seeds), cells.index(cell) + 0.12 + 0.8 * order.index(method) / len(order))
        for x, y in panel.points(at, seeds):
            pen.ellipse([x - 8, y - 8, x + 8, y + 8], fill=colors[method])
        ((x, y),) = panel.points(at[:1], seeds.mean(keepdims=True))
        pen.line([(x - 14, y), (x + 14, y)], fill=colors[method], width=5)


@command
def main(argv: list[str] | None = None) -> None:
    """Print the tables and write the picture."""
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "frozen.jsonl", metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: frozen.png beside it")
    args = parser.parse_args(argv)
    groups = grouped(label_errors.read_rows(args.results))
    print(table(groups))
    print(comparisons(groups))
    draw(groups).save(args.output or args.results.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
