"""Classify pictures: print the five most probable classes of each.

python src/predict.py outputs/lenet5-mnist/latest digit.png
python src/predict.py outputs/convnet_cifar10-cifar10/latest photos/ *.jpg --json
python src/predict.py best.ckpt scans/ --explain explained --trust my_package
"""

import sys
from pathlib import Path

from classic_cnns.config.command_line import Command, one_line_errors
from classic_cnns.config.compose import Composer
from classic_cnns.data.folders import pictures_in
from classic_cnns.trainer.devices import limit_spinning


def main() -> None:
    parser = Command(__doc__)
    parser.add_argument("pictures", nargs="+", help="files, and folders of any depth")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")
    parser.add_argument(
        "--explain", type=Path, metavar="FOLDER",
        help="write a figure for each file: input, maps of every layer, and answer",
    )  # fmt: skip
    given = parser.parse_intermixed_args()
    with one_line_errors():
        limit_spinning()
        checkpoint, config = Composer(given.config_dir, trusted=given.trust).load_run(given.run)
        paths = pictures_in(given.pictures)
        from classic_cnns.run.predict import predict  # here, since importing torch takes seconds

        sys.exit(predict(checkpoint, config, paths, given.json, given.explain))


if __name__ == "__main__":
    main()
