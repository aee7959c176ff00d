"""Resize the images of class folders once, for all runs that use them; or download a data set.

python src/prepare.py data.root=<folder>
python src/prepare.py data.root=<folder> data.store=jpeg data.jpeg_quality=95
python src/prepare.py data=cifar10

A run does this itself when it first uses the data. The same command continues an interrupted
preparation. On a cluster, this can be done before a job starts, on a machine with a network.
"""

from typing import Any

from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import Composer

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="key=value", help="keys of data")
    parser.add_config_dir()
    with one_line_errors():
        given = parser.parse_intermixed_args()
        chosen = {word.partition("=")[0] for word in given.words}
        # A net for images of any number of channels and any size.
        usual = {"model": "simple_cnn", "model.input.fit": "crop", "model.input.size": "1"}
        if "data" not in chosen:
            usual |= {"data": "image_folder", "data.augment": "none"}
        added = [f"{key}={value}" for key, value in usual.items() if key not in chosen]
        config = Composer(given.config_dir).compose([*added, *given.words])

        from classic_cnns.report.log import show_log  # here, since importing torch takes seconds
        from classic_cnns.run.build import build_data

        show_log()
        has_store = "store" in config.data
        if has_store:
            config.data.prepare = False  # by itself
        data_module: Any = build_data(config)
        data_module.prepare_data()
        if has_store:
            data_module.prepare_store(create=True, required=True)
        print("prepared:", data_module.cache if has_store else " ".join(given.words))
