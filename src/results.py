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
        from classic_cnns.run_directory import named

        found = [named(Path(name)) for name in given.directories]
        directories = list(dict.fromkeys(found))  # latest is among those of a pattern too
        folder = given.to or (found[0] if len(found) == 1 else Path("outputs/results"))
        rows = read(directories)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, rows)
        print(markdown(rows))

        from classic_cnns.report import curves  # here, since matplotlib takes a second

        curves.write(folder / "curves.png", rows)
        print(f"\nIn {folder}: results.csv, results.md and curves.png")


if __name__ == "__main__":
    results()
