"""Evaluate a trained net on the same data, on other data, or on other devices.

python src/evaluate.py outputs/lenet5-mnist/latest
python src/evaluate.py outputs/lenet5-mnist/latest split=val --json
python src/evaluate.py outputs/lenet5-mnist/latest data=fashion_mnist
python src/evaluate.py best.ckpt data.test_patches=ten trainer=ddp trainer.devices=2
"""

from classic_cnns import UserError
from classic_cnns.config.command_line import Parser, one_line_errors
from classic_cnns.config.compose import load_run
from classic_cnns.trainer.launch import run_in_ranks

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_run()
    parser.add_argument(
        "words", nargs="*", default=[], metavar="key=value",
        help="split=val or split=test; data=, data_dir= and trainer=, and keys of theirs",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON instead of tables"
    )
    with one_line_errors():
        given = parser.parse_intermixed_args()
        split = "test"
        for word in [word for word in given.words if word.startswith("split=")]:
            given.words.remove(word)
            split = word.removeprefix("split=")
            if split not in ("val", "test"):
                raise UserError(f"{word}: must be one of val, test; try split=test")
        checkpoint, config = load_run(given, given.run, given.words)

        def task() -> None:
            from classic_cnns.run.evaluate import evaluate

            if found := evaluate(checkpoint, config, split):
                print(found.json() if given.json else found.table())

        run_in_ranks(config.trainer, task)
