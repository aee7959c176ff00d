"""Resize the images of class folders once, for all runs that use them.

python src/prepare.py data.root=<folder>
python src/prepare.py data.root=<folder> data.store=jpeg data.jpeg_quality=95

A run does this itself when it first uses a folder. The same command continues an interrupted
preparation.
"""

from classic_cnns import UserError
from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import Composer


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="key=value", help="keys of data")
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], metavar="DIR",
        help="also search DIR for configs",
    )  # fmt: skip
    with one_line_errors():
        given = parser.parse_intermixed_args()
        composer = Composer(given.config_dir)
        chosen = dict(word.partition("=")[::2] for word in given.words)
        data = chosen.get("data", "image_folder")
        known = data in composer.groups["data"]
        if known and "store" not in composer.read_files((f"data={data}",)).data:
            raise UserError(f"data={data}: has no images to prepare; try data=image_folder")
        usual = {"data": "image_folder", "model": "alexnet"}
        added = [f"{key}={value}" for key, value in usual.items() if key not in chosen]
        config = composer.compose([*added, *given.words])

        from classic_cnns.report.log import show_log  # here, since importing torch takes seconds
        from classic_cnns.run.build import build_data

        show_log()
        config.data.prepare = False  # by itself
        data_module = build_data(config)
        data_module.prepare_data()
        data_module.prepare_store(create=True, required=True)
        print(f"prepared: {data_module.cache}")


if __name__ == "__main__":
    main()
