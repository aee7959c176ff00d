"""Show a trained net on a local web page: draw a digit, or upload a photo.

python src/demo.py outputs/lenet5-mnist/latest
python src/demo.py outputs/convnet_cifar10-cifar10/latest --port 7861
"""

from importlib.util import find_spec

from classic_cnns import UserError
from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import load_run

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_run()
    parser.add_argument("--port", type=int, help="of the page (default: the first free one)")
    with one_line_errors():
        given = parser.parse_args()
        if find_spec("gradio") is None:
            raise UserError("demo.py: needs an extra; try pip install -e '.[demo]'")
        checkpoint, config = load_run(given, given.run)
        from classic_cnns.run.demo import page  # here, since importing torch takes seconds

        try:
            page(checkpoint, config).launch(server_port=given.port, show_error=True)
        except OSError as error:
            raise UserError(f"--port={given.port}: is in use; leave it out") from error
