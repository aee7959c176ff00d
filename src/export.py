"""Export a trained net to a file that can be used without this project.

python src/export.py outputs/lenet5-mnist/latest --to lenet5.onnx
python src/export.py outputs/lenet5-mnist/latest --to lenet5.pt2
python src/export.py outputs/lenet5-mnist/latest --to lenet5.safetensors

ONNX and PT2 files map pictures (N, C, H, W) uint8 of the data set's size to probabilities (N,
classes). Safetensors contain the weights, and the preprocessing as metadata.
"""

from pathlib import Path

from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import load_run

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_run()
    parser.add_argument("--to", required=True, type=Path, help="*.onnx, *.pt2 or *.safetensors")
    with one_line_errors():
        given = parser.parse_args()
        checkpoint, config = load_run(given, given.run)
        from classic_cnns.run.export import export  # here, since importing torch takes seconds

        print(export(checkpoint, config, given.to))
