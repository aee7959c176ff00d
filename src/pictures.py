"""Draw figures of a trained net: kernels, feature maps, answers, mistakes and robustness.

python src/pictures.py outputs/lenet5-mnist/latest
python src/pictures.py outputs/lenet5-mnist/latest outputs/simple_cnn-mnist/latest --to pictures
python src/pictures.py outputs/alexnet-image_folder/latest data.root=FOLDER

The robustness of several runs is compared.
"""

from pathlib import Path

from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import load_run

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_run(nargs="+")
    parser.add_argument(
        "--to", type=Path, help="output folder (default: pictures/ in the run directory)"
    )
    with one_line_errors():
        given = parser.parse_intermixed_args()
        words = [word for word in given.run if word.startswith(("data=", "data.", "data_dir="))]
        runs = [load_run(given, run, words or None) for run in given.run if run not in words]
        from classic_cnns.run.pictures import draw  # here, since importing torch takes seconds

        for path in draw(runs, given.to):
            print(path)
