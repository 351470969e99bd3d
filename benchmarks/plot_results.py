"""Plot the runs of `reproduce.py --small` in benchmarks/results/.

    python benchmarks/plot_results.py
    python benchmarks/plot_results.py --results DIR --output FILE.png

One column per noise: test accuracy, and precision and recall of the split's clean set, mean of both
networks. A line is the mean over the seeds, a band their range.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compare_runs import FinishedRun, differences, read_run, run_folders
from smr.errors import InputError
from smr.flags import Parser
from smr.logging.figures import INK, blank, font_of, write
from smr.logging.metrics_file import read_metrics
from smr.run.command import command

RESULTS = Path(__file__).resolve().parent / "results" / "small"
Color = tuple[int, int, int]
LIGHT = (225, 225, 225)
# Okabe and Ito's colors, which color-blind readers can tell apart, and those of other methods.
COLORS = {
    "smr": (0, 114, 178),
    "dividemix": (213, 94, 0),
    "ce": (30, 30, 30),
    "smr, no recalibration": (0, 158, 115),
    "smr, ce warm-up": (204, 121, 167),
    "smr, strong augmentation": (230, 159, 0),
}
OTHER_COLORS = ((86, 180, 233), (150, 150, 150))
KINDS_OF_NOISE = ("sym", "asym", "human")
# Each row of panels: its axis, the metrics whose mean is plotted, and its height.
ROWS = (
    ("test accuracy, %", ("test/accuracy",), 600),
    ("split: precision", ("split/net1/precision", "split/net2/precision"), 340),
    ("split: recall", ("split/net1/recall", "split/net2/recall"), 340),
)
# In pixels; drawn twice as large and scaled down, since Pillow does not smooth lines.
WIDTH, LEFT, TOP, ACROSS, BELOW, TEXT = 2400, 170, 200, 100, 80, 32
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

# (dataset, noise) → method → the rows of metrics.jsonl of each seed.
Runs = dict[tuple[str, str], dict[str, list[list[dict]]]]
# A method's color, epochs [e] and values [seeds, e].
Curve = tuple[Color, np.ndarray, np.ndarray]


def read_runs(results: Path) -> Runs:
    """The finished runs of a folder. Raises InputError if there is none."""
    candidates = map(read_run, run_folders([results]))
    finished = [run for run in candidates if isinstance(run, FinishedRun)]
    if not finished:
        raise InputError(f"{results}: no finished run; benchmarks/reproduce.py makes them")
    runs: Runs = {}
    for run in sorted(finished, key=noise_order):
        note = differences(run, [other for other in finished if other.cell == run.cell])
        method = f"{run.cell[2]} ({note})" if note else run.cell[2]
        runs.setdefault(run.cell[:2], {}).setdefault(method, []).append(read_metrics(run.folder))
    return runs


def noise_order(run: FinishedRun) -> tuple:
    """Symmetric noise first, then asymmetric, then human."""
    kind = run.cell[1].split()[0]
    known = kind in KINDS_OF_NOISE
    return KINDS_OF_NOISE.index(kind) if known else len(KINDS_OF_NOISE), run.cell[:2]


def colors_of(runs: Runs) -> dict[str, Color]:
    """The color of each method in these runs, in the legend's order."""
    methods = {method for cell in runs.values() for method in cell}
    others = sorted(methods - COLORS.keys())
    colors = COLORS | {m: OTHER_COLORS[i % 2] for i, m in enumerate(others)}
    return {method: color for method, color in colors.items() if method in methods}


def curves_of(runs: Runs, names: tuple[str, ...]) -> list[list[Curve]]:
    """Per noise, the curves of the methods that have these metrics, at epochs of all seeds."""
    columns = []
    for cell in runs.values():
        curves = []
        for method in (method for method in colors_of(runs) if method in cell):
            seeds = [
                {row["epoch"]: np.mean([row[k] for k in names]) for row in rows if names[0] in row}
                for rows in cell[method]
            ]
            epochs = sorted(set.intersection(*map(set, seeds)))
            values = np.array([[seed[epoch] for epoch in epochs] for seed in seeds])
            if len(epochs) > 1:
                curves.append((colors_of(runs)[method], np.array(epochs), values))
        columns.append(curves)
    return columns


def ticks(low: float, high: float, most: int) -> np.ndarray:
    """At most so many round numbers in equal steps, the first at or below low, the last above."""
    for step in STEPS:
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first < most:
            break
    return np.arange(first, max(last, first + 1) + 1) * step


def boxes(columns: int) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Each panel's row, column and box (left, top, right, bottom)."""
    width = (WIDTH - LEFT - 30 - (columns - 1) * ACROSS) // columns
    top = TOP
    for row, (_, _, height) in enumerate(ROWS):
        for column in range(columns):
            left = LEFT + column * (width + ACROSS)
            yield row, column, (left, top, left + width, top + height)
        top += height + BELOW


class Panel:
    """A pair of axes in a picture, with these ticks."""

    def __init__(self, picture: Image.Image, box, x_ticks: np.ndarray, y_ticks: np.ndarray):
        self.picture, self.box, self.x_ticks, self.y_ticks = picture, box, x_ticks, y_ticks

    def points(self, epochs: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
        """Where these values are in the picture."""
        left, top, right, bottom = self.box
        x = left + (epochs - self.x_ticks[0]) / np.ptp(self.x_ticks) * (right - left)
        y = bottom - (values - self.y_ticks[0]) / np.ptp(self.y_ticks) * (bottom - top)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    def draw_axes(self, names: Sequence[str] = ()) -> None:
        """The grid and its numbers, or names between the ticks below."""
        pen, (left, top, right, bottom) = ImageDraw.Draw(self.picture), self.box
        levels = self.points(0 * self.y_ticks, self.y_ticks)
        columns = self.points(self.x_ticks, 0 * self.x_ticks)
        for (_, y), value in zip(levels, self.y_ticks, strict=True):
            pen.line([(left, y), (right, y)], fill=LIGHT, width=2)
            write(pen, (left - 12, y), f"{value:g}", TEXT, anchor="rm")
        shift = (columns[1][0] - columns[0][0]) / 2 if names else 0
        for (x, _), text in zip(columns, names or self.x_ticks, strict=True):
            pen.line([(x, bottom), (x, bottom + 10)], fill=INK, width=2)
            word = text if names else f"{text:g}"
            write(pen, (x + shift, bottom + 14), word, TEXT, anchor="mt")
        pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK, width=2)

    def draw_curves(self, curves: list[Curve]) -> None:
        """The range over the seeds of each curve, and above all ranges the means."""
        for color, epochs, values in curves:
            high, low = (self.points(epochs, edge) for edge in (values.max(0), values.min(0)))
            band = Image.new("L", self.picture.size)
            ImageDraw.Draw(band).polygon([*high, *reversed(low)], fill=60)
            self.picture.paste(color, mask=band)
        pen = ImageDraw.Draw(self.picture)
        for color, epochs, values in curves:
            pen.line(self.points(epochs, values.mean(axis=0)), fill=color, width=6, joint="curve")


def sideways(text: str, size: int) -> Image.Image:
    """Text that reads upwards."""
    picture, pen = blank(int(font_of(size).getlength(text)) + 2, size + 4)
    write(pen, (1, 0), text, size)
    return picture.rotate(90, expand=True)


def draw(runs: Runs) -> Image.Image:
    """The picture of these runs, 1200 pixels wide."""
    height = TOP + sum(height + BELOW for _, _, height in ROWS) + 20
    picture, pen = blank(WIDTH, height)
    draw_legend(pen, colors_of(runs), "line: mean over the seeds; band: their range")
    rows = [curves_of(runs, names) for _, names, _ in ROWS]
    last = max(len(seeds[0]) for cell in runs.values() for seeds in cell.values()) - 1
    scales = [[v for curves in row for _, _, values in curves for v in values.flat] for row in rows]
    for row, column, box in boxes(len(runs)):
        values = scales[row] or [0, 1]
        panel = Panel(picture, box, ticks(0, last, 8), ticks(min(values), max(values), 8))
        panel.draw_axes()
        panel.draw_curves(rows[row][column])
        if column == 0:
            axis = sideways(ROWS[row][0], TEXT + 4)
            picture.paste(axis, (8, (box[1] + box[3] - axis.height) // 2))
        if row == 0:
            title, middle = ", ".join(list(runs)[column]), (box[0] + box[2]) // 2
            write(pen, (middle, TOP - 30), title, 40, anchor="ms")
        if row == len(ROWS) - 1:
            write(pen, (box[2], box[3] + 52), "epoch", TEXT, anchor="rt")
    return picture.resize((WIDTH // 2, height // 2), Image.Resampling.LANCZOS)


def draw_legend(pen: ImageDraw.ImageDraw, colors: dict[str, Color], words: str) -> None:
    """The methods' names beside their colors, in as many lines as it takes, and these words."""
    x, y = LEFT, 40
    for method, color in colors.items():
        width = 130 + int(font_of(36).getlength(method))
        if x + width > WIDTH:
            x, y = LEFT, y + 52
        pen.line([(x, y), (x + 60, y)], fill=color, width=12)
        write(pen, (x + 76, y), method, 36, anchor="lm")
        x += width
    write(pen, (LEFT, y + 52), words, TEXT, (90, 90, 90), anchor="lm")


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: DIR/curves.png")
    args = parser.parse_args(argv)
    draw(read_runs(args.results)).save(args.output or args.results / "curves.png")


if __name__ == "__main__":
    sys.exit(main())
