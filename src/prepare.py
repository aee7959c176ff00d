"""Resize the images of class folders once, for all runs that use them.

python src/prepare.py data.root=<folder>
python src/prepare.py data.root=<folder> data.store=jpeg data.jpeg_quality=95

A run does this itself when it first uses a folder. The same command continues an interrupted
preparation.
"""

import sys

from classic_cnns import UserError
from classic_cnns.config.command_line import one_line_errors
from classic_cnns.config.compose import compose


def main() -> None:
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(__doc__.strip())
        return
    with one_line_errors():
        given = {word.partition("=")[0] for word in words}
        usual = {"model": "alexnet", "data": "image_folder"}
        config = compose(*(f"{k}={v}" for k, v in usual.items() if k not in given), *words)
        if "store" not in config.data:
            raise UserError(f"data={config.data.dataset}: has no images to prepare; leave it out")

        from classic_cnns.report.log import show_log  # here, since importing torch takes seconds
        from classic_cnns.run.build import build_data

        show_log()
        config.data.prepare = False  # by itself
        data = build_data(config)
        data.prepare_data()
        data.prepare_store(make=True, must=True)
        print(f"prepared: {data.cache}")


if __name__ == "__main__":
    main()
