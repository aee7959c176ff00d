"""Classify pictures: print the five most probable classes of each.

python src/predict.py outputs/lenet5-mnist/latest digit.png
python src/predict.py outputs/convnet_cifar10-cifar10/latest photos/ *.jpg --json
python src/predict.py best.ckpt scans/ --explain explained --trust my_package
"""

import sys
from pathlib import Path

from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import load_run
from classic_cnns.data.folders import pictures_in

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_run()
    parser.add_argument("pictures", nargs="+", help="files, and folders of any depth")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")
    parser.add_argument(
        "--explain", type=Path, metavar="FOLDER",
        help="write a figure for each file: input, maps of every layer, and answer",
    )  # fmt: skip
    with one_line_errors():
        given = parser.parse_intermixed_args()
        checkpoint, config = load_run(given, given.run)
        paths = pictures_in(given.pictures)
        from classic_cnns.run.predict import predict  # here, since importing torch takes seconds

        sys.exit(predict(checkpoint, config, paths, given.json, given.explain))
