"""Launcher: starts one process for each device and supervises them.

Why not Lightning's launcher: when a rank dies, it kills the process that the user started, which
then cannot record the result. Why not torchrun: it takes seconds to import torch, and leaves its
processes running when it is killed itself. Here each rank reports its end through a pipe. Its
standard input is a pipe too: when the launcher is gone, however it ended, the rank ends.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, NoReturn

from classic_cnns import UserError, one_line
from classic_cnns.files import write_json
from classic_cnns.trainer import processes
from classic_cnns.trainer.devices import core_count, device_count, free_port, launched_processes
from classic_cnns.trainer.processes import exit_reason, stop_signals, supervise

REPORT = "CLASSIC_CNNS_REPORT"  # environment variable with the descriptor of the pipe


# --- In a rank -----------------------------------------------------------------------------------


def send_report(**facts: Any) -> None:
    """Send facts to the supervising process, if any, as one line, atomic up to 4 KiB."""
    if REPORT in os.environ:
        line = json.dumps(facts | {"rank": int(os.environ["RANK"])}, ensure_ascii=False)
        os.write(int(os.environ[REPORT]), f"{line}\n".encode(errors="replace"))


def run_in_ranks(trainer: Any, task: Callable[[], object]) -> None:
    """Run `task` here, or this command in one process for each device of the Trainer's config.

    In a rank that another process supervises, errors are reported to that process, not printed.
    """
    if launched_processes() is None:
        count = device_count(trainer)
        launch(count) if count > 1 else task()
        return
    facts: dict[str, Any] = {}
    atexit.register(exit_at_once, facts)  # registered first, so it runs last
    if REPORT not in os.environ:  # supervised by torchrun or SLURM
        task()
        facts["code"] = 0
        return
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    try:
        task()
        facts["code"] = 0
        return
    except SystemExit as stop:  # its code may also be a message, or None
        facts["code"] = 0 if stop.code is None else stop.code
        if not isinstance(facts["code"], int):
            facts |= {"code": 1, "error": str(stop.code)[:500]}
    except UserError as error:
        facts |= {"code": 2, "error": str(error)[:1000]}
    except BrokenPipeError:  # the reader of the output has ended, such as head
        facts["code"] = 128 + signal.SIGPIPE
    except BaseException as error:
        line = f"{type(error).__name__}: {one_line(error)}"
        trace = traceback.format_exc(limit=-8, chain=False)
        facts |= {"code": 1, "error": line[:500], "trace": trace[:2000]}
    send_report(**facts)


def exit_at_once(end: dict[str, int]) -> None:
    """End this process with `code` of `end`, if it has one, without finalising the interpreter.

    During finalisation a thread of gloo occasionally aborts the process when it releases its last
    Python object, and a finished run would be reported as failed.
    """
    if end.get("code") is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        os._exit(end["code"])


def end_with_standard_input() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


# --- In the process that the user started --------------------------------------------------------


def launch(count: int) -> None:
    """Run this command in `count` ranks; if they fail, exit with their code."""
    receiver, sender = os.pipe()
    os.set_blocking(receiver, False)
    with stop_signals() as stop_requests:
        port = free_port()
        ranks = [start(rank, count, port, sender) for rank in range(count)]
        os.close(sender)
        forwarders = [
            threading.Thread(target=forward_output, args=pair, daemon=True)
            for pair in enumerate(ranks)
        ]
        for thread in forwarders:
            thread.start()
        for codes in supervise(ranks, stop_requests):
            first = codes
            time.sleep(0.05)
        for thread in forwarders:
            thread.join(timeout=1)
        if first:
            reports = []
            with open(receiver, "rb", buffering=0) as pipe:  # a child of a rank may keep it open
                lines = (pipe.read() or b"").splitlines()
            for line in lines:
                with suppress(ValueError):  # a rank was killed while it was writing
                    reports.append(json.loads(line))
            exit_with_reason(first, reports, stop_requests)


def start(rank: int, count: int, port: int, sender: int) -> Popen:
    env = {"OMP_NUM_THREADS": str(max(1, core_count() // count))} | os.environ
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    return processes.start(
        [sys.executable, *sys.argv],
        env | {REPORT: str(sender)},
        pass_fds=[sender],
        stdin=PIPE,
        stdout=DEVNULL if rank else None,
        stderr=PIPE if rank else None,
    )


def forward_output(rank: int, process: Popen) -> None:
    """Forward the warnings and errors of a rank other than 0."""
    for line in process.stderr or ():
        sys.stderr.write(f"rank {rank}: {line.decode(errors='replace')}")


def exit_with_reason(
    first: dict[int, int], reports: list[dict], stop_requests: list[int]
) -> NoReturn:
    """Print one line about why the run ended, record it in `result.json`, and exit."""
    ends = {facts["rank"]: facts for facts in reports if "code" in facts}  # in order of arrival
    silent = [rank for rank in first if rank not in ends]
    if ends:  # a rank that sends to one that has ended is killed by it
        silent = [rank for rank in silent if first[rank] != -signal.SIGPIPE]
    status, code, trace = "failed", 1, ""
    if stop_requests:
        number = stop_requests[0]
        if number == processes.REQUEUE:
            processes.requeue()
        status, code, line = "interrupted", 128 + number, signal.Signals(number).name
        if 0 in ends and ends[0]["code"] == 143:
            sys.exit(code)  # rank 0 has reported everything
    elif silent:
        line = f"rank {silent[0]} {exit_reason(first[silent[0]])}"
    else:
        rank, facts = next(iter(ends.items()))
        code, line, trace = facts["code"], facts.get("error", ""), facts.get("trace", "")
        if not line:  # it has reported the reason itself
            sys.exit(code)
        line = line if code == 2 else f"rank {rank}: {line}"
    resume = ""
    for facts in (facts for facts in reports if "directory" in facts):
        result = {"status": status, "directory": facts["directory"], "error": line}
        if not any("written" in other for other in reports):  # the run was over
            with suppress(OSError):
                write_json(Path(facts["directory"]) / "result.json", result)
        resume = facts["resume"] if code != 2 else ""
    reason = f"interrupted by {line}" if stop_requests else line
    print(f"{trace}error: {reason}{resume}", file=sys.stderr)
    sys.exit(code)
