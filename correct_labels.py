"""Correct labels as you decided on the page labels.html or in a spreadsheet.

    python correct_labels.py checkpoint/folder_smr_seed123 corrections.csv --dry_run
    python correct_labels.py checkpoint/folder_smr_seed123 corrections.csv
    python correct_labels.py checkpoint/folder_smr_seed123 --undo

Takes a run's folder, and the corrections.csv that the page saves or the run's labels.csv with
`given` or `given_name` edited. Image files move into the folder of their class, dropped ones into
dropped/; nothing is overwritten, and a log in the data's folder lets --undo put all back. Other
data stays as it is: the run's folder gets corrected_labels.json for the training script's
--noise_file, or corrected_labels.csv for its --labels.
"""

import sys
from pathlib import Path

from smr.flags import Parser, number
from smr.label_issues import corrections as lists
from smr.label_issues.moves import move_files, undo
from smr.logging.console import Terminal
from smr.run.command import command


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run's folder, with labels.csv")
    about = "corrections.csv of the page, or an edited labels.csv"
    add("file", type=Path, nargs="?", metavar="FILE", help=about)
    about = "instead of FILE: take the first N suggestions without review; some will be wrong"
    add("--accept", type=number(int, 1), metavar="N", help=about)
    about = "instead of FILE: take the suggestions with a p_clean below P without review"
    add("--accept_below", type=number(float, 0, 1), metavar="P", help=about)
    add("--undo", action="store_true", help="put back what this run's corrections moved")
    add("--dry_run", action="store_true", help="show what would be done, and do nothing")
    about = "the data's folder (default: that of the run)"
    add("--data_path", type=Path, metavar="DIR", help=about)
    args = parser.parse_args(argv)
    ways = (args.file, args.accept, args.accept_below, args.undo or None)
    if sum(way is not None for way in ways) != 1:
        parser.error("give one of FILE, --accept, --accept_below and --undo")
    run, line = lists.read_run(args.run), Terminal().line
    root = args.data_path or Path(run.config["data_path"])
    if args.undo:
        undo(run, root, args.dry_run, line)
        return
    if args.file:
        corrections = lists.read_corrections(args.file, run)
    else:
        corrections = lists.suggestions(run, args.accept, args.accept_below)
    dropped = list(corrections.values()).count(None)
    line(f"{len(corrections) - dropped:,} labels to change, {dropped:,} images to drop")
    apply = move_files if run.config.get("labels_in_paths") else lists.write_label_list
    apply(run, corrections, root, args.dry_run, line)


if __name__ == "__main__":
    sys.exit(main())
