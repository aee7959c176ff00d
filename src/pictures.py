"""Draw figures of a trained net: kernels, feature maps, answers, mistakes and robustness.

python src/pictures.py outputs/lenet5-mnist/latest
python src/pictures.py outputs/lenet5-mnist/latest outputs/simple_cnn-mnist/latest --to pictures
"""

from pathlib import Path

from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import Composer
from classic_cnns.trainer.spinning import limit_spinning


def main() -> None:
    parser = Parser(__doc__)
    parser.add_run()
    parser.add_argument(
        "more",
        nargs="*",
        default=[],
        help="more runs, to compare their robustness",
    )
    parser.add_argument(
        "--to", type=Path, help="output folder (default: pictures/ in the run directory)"
    )
    with one_line_errors():
        given = parser.parse_intermixed_args()
        limit_spinning()
        composer = Composer(given.config_dir, trusted=given.trust)
        runs = [composer.load_run(run) for run in (given.run, *given.more)]
        from classic_cnns.run.pictures import draw  # here, since importing torch takes seconds

        for path in draw(runs, given.to):
            print(path)


if __name__ == "__main__":
    main()
