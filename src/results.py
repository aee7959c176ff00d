"""Print the table of runs and sweeps, and draw their learning curves.

python src/results.py outputs
python src/results.py outputs/sweep/2026-11-22_10-15-03-123456
python src/results.py outputs/lenet5-mnist/* --to outputs/results
"""

from pathlib import Path

from classic_cnns.config.command_line import Parser, one_line_errors

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "directories", nargs="+", metavar="DIRECTORY",
        help="run, sweep, or a folder that contains some",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=Path, help="folder for results.csv, results.md and curves.png (default: the "
        "directory, if there is only one, else outputs/results)",
    )  # fmt: skip
    with one_line_errors():
        given = parser.parse_intermixed_args()
        from classic_cnns.config.stored import resolve_latest
        from classic_cnns.files import make_folder
        from classic_cnns.report.results import read_table

        directories = [resolve_latest(name) for name in given.directories]
        alone = len(set(directories)) == 1
        folder = given.to or (directories[0] if alone else Path("outputs/results"))
        table = read_table(directories)
        print(table.markdown())
        make_folder(folder, "--to")
        table.write(folder)

        from classic_cnns.report import curves  # here, since importing matplotlib takes a second

        curves.write(folder / "curves.png", table)
        print(f"\nIn {folder}: results.csv, results.md and curves.png")
