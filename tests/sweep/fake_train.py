"""A fake train.py: its runs count epochs without torch and write the files of a run.

Their error depends only on lr and seed. Some learning rates make them fail, and they resume from
their checkpoint. The package $HIDDEN appears not to be installed.
"""

import json
import os
import signal
import sys
import time
from importlib import metadata, util
from pathlib import Path

FAILURES = {0.5: "raise", 0.6: "kill", 0.7: "hang", 0.8: "diverge"}  # by learning rate


def error(lr: float, seed: int, epoch: int) -> float:
    """The error after `epoch` epochs."""
    return sum(lr / (1 + seed + past) for past in range(1, epoch + 1))


def run(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "resume" in given:
        directory = Path(given["resume"].strip("'"))
        given = json.loads((directory / "config.yaml").read_text())
    else:
        directory = Path(given.pop("run_dir").strip("'"))
        (directory / "config.yaml").write_text(json.dumps(given))  # JSON is YAML too
    lr, seed = float(given.get("optim.lr", 0.02)), int(given.get("seed", 0))
    epochs, last = int(given["trainer.max_epochs"]), directory / "last.ckpt"
    result = {"status": "interrupted", "error": "stopped", "directory": str(directory)}

    def write_result(**facts) -> None:
        temporary = directory / ".result.json"
        temporary.write_text(json.dumps(result | facts))
        temporary.replace(directory / "result.json")

    def stop(*_) -> None:
        write_result()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    epoch = int(last.read_text()) if last.exists() else 0
    with open(directory / "starts", "a") as file:
        names = ("OMP_NUM_THREADS", "LOCAL_RANK", "MASTER_ADDR", "PL_GLOBAL_SEED", "WORLD_SIZE")
        start = {name: os.environ.get(name) for name in names}
        print(json.dumps(start | {"epoch": epoch, "time": time.time()}), file=file)
    while epoch < epochs:
        time.sleep(float(os.environ.get("EPOCH_SECONDS", 0)))
        epoch += 1
        value = error(lr, seed, epoch)
        metrics = {"error/val": value, "accuracy/val": 1 - value, "loss/train": lr}
        line = {"epoch": epoch, "epochs": epochs, "seconds": 0.5 * epoch, "metrics": metrics}
        with open(directory / "metrics.jsonl", "a") as file:
            print(json.dumps(line), file=file)
        beside = last.with_suffix(".partial")
        beside.write_text(str(epoch))
        beside.replace(last)  # whole, whenever the job is killed
        if (failure := FAILURES.get(lr)) == "raise":
            raise RuntimeError("first line\nno memory is left")
        if failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "hang":
            time.sleep(600)
        if failure == "diverge":
            write_result(status="diverged", error="nan")
            sys.exit(1)
    value = error(lr, seed, epochs)
    metrics = {"error/val": value, "accuracy/val": 1 - value, "error/test": value + 0.02}
    last_metrics = {"error/val": value + 0.01, "accuracy/val": 0.99 - value}
    facts = {"metrics": metrics, "last": last_metrics, "epochs": epochs, "seconds": 1.5}
    write_result(status="finished", error="", **facts)


def hide(package: str) -> None:
    find_spec, version = util.find_spec, metadata.version
    util.find_spec = lambda name: None if name == package else find_spec(name)
    metadata.version = lambda name: version("no such package" if name == package else name)


if __name__ == "__main__":
    hide(os.environ.get("HIDDEN", ""))
    if "-m" in sys.argv:
        from classic_cnns.__main__ import main

        main()
    else:
        run(sys.argv[1:])
