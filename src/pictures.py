"""Draw what a trained net has learned: kernels, maps, answers, mistakes, and what throws it off.

python src/pictures.py outputs/lenet5-mnist/latest
python src/pictures.py outputs/lenet5-mnist/latest outputs/simple_cnn-mnist/latest --to pictures
"""

from pathlib import Path

from classic_cnns.config.command_line import Command, one_line_errors
from classic_cnns.config.compose import Composer
from classic_cnns.trainer.devices import limit_spinning


def main() -> None:
    parser = Command(__doc__)
    parser.add_argument(
        "more",
        nargs="*",
        default=[],
        help="further runs, whose robustness is drawn beside that of the first",
    )
    parser.add_argument("--to", type=Path, help="a folder; without it pictures/ of the run")
    given = parser.parse_args()
    with one_line_errors():
        limit_spinning()
        composer = Composer(given.config_dir, trusted=given.trust)
        runs = [composer.load_run(run) for run in (given.run, *given.more)]
        from classic_cnns.run.pictures import draw  # here, since importing torch takes seconds

        for path in draw(runs, given.to):
            print(path)


if __name__ == "__main__":
    main()
