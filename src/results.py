"""Print the table of finished runs and sweeps, and draw their learning curves.

python src/results.py outputs/sweep/2026-11-22_10-15-03-123456
python src/results.py outputs/lenet5-mnist/* --to outputs/results
"""

import argparse
from pathlib import Path

from classic_cnns.command_line import fail, one_line_errors


def results() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", metavar="DIRECTORY", help="of a run or a sweep")
    parser.add_argument(
        "--to", type=Path, help="where results.csv, results.md and curves.png go; without it to "
        "the directory itself if it is one alone, else to outputs/results",
    )  # fmt: skip
    parser.error = lambda line: fail(f"{line}; see --help")  # type: ignore
    given = parser.parse_args()
    with one_line_errors():
        from classic_cnns.report.results import markdown, read, write

        alone = len(given.directories) == 1
        folder = given.to or Path(given.directories[0] if alone else "outputs/results")
        rows = read([name for name in given.directories if Path(name).name != "latest"])
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, rows)
        print(markdown(rows))

        from classic_cnns.report import curves  # here, since matplotlib takes a second

        curves.write(folder / "curves.png", rows)
        print(f"\nIn {folder}: results.csv, results.md and curves.png")


if __name__ == "__main__":
    results()
