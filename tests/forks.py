"""A server that starts our commands quickly, each in its own process.

Importing torch and Lightning takes longer than most tests. The server imports them once, and each
command is forked from it, with its own pid, session, signals, exit code and streams. The ranks and
the jobs of sweeps that a command starts are forked too. Tests of the start itself, or of another
interpreter, start a new interpreter with the fixture `spawn`.
"""

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SRC = Path(__file__).parents[1] / "src"
TRAIN = SRC / "train.py"
Popen = subprocess.Popen


class Output:
    """Reads a process's output from its file while the process runs."""

    def __init__(self, process: "Process", path: str) -> None:
        self.process, self.file = process, open(path)

    def readline(self) -> str:
        line = ""
        while not line.endswith("\n"):
            ended = self.process.poll() is not None
            if not (more := self.file.readline()):
                if ended:
                    break
                time.sleep(0.01)
            line += more
        return line

    def __iter__(self):
        return iter(self.readline, "")

    def read(self) -> str:
        self.process.wait()
        return self.file.read()


class Process:
    """The part of Popen's interface that the tests use."""

    def __init__(self, server: "Server", pid: int, streams: list[str]) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None
        self.stdout, self.stderr = (Output(self, path) for path in streams)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask(pid=self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """Starts commands; as a context manager it kills those that still run at its end."""

    def __init__(self, **environment: str) -> None:
        common = {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
        self.environment = os.environ | common | environment
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = Popen([sys.executable, __file__], env=self.environment, **pipes)
        self.folder, self.count = TemporaryDirectory(), 0
        self.started: list[Process] = []

    def ask(self, **request: Any) -> Any:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *argv: Any, cwd: Path, env: dict[str, str] | None = None) -> Process:
        """Start one of our programs with arguments; `env` is added to the server's environment."""
        self.count += 1
        streams = [f"{self.folder.name}/{self.count}.{name}" for name in ("out", "err")]
        request = {"argv": list(map(str, argv)), "cwd": str(cwd), "env": env or {}}
        process = Process(self, self.ask(**request, streams=streams), streams)
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill all started processes that still run."""
        for process in self.started:
            process.kill()
            process.wait()
            process.stdout.file.close()
            process.stderr.file.close()
        self.started.clear()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.process.communicate()
        self.folder.cleanup()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    """Whether all have ended after at most 10 seconds."""
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


# --- In the server --------------------------------------------------------------------------------


def popen(command: list, env=None, preexec_fn=None, pass_fds=(), **options) -> subprocess.Popen:
    """Popen whose child, for our programs, is a fork of this interpreter, not a new one."""
    if command[0] != sys.executable or not str(command[1]).endswith(".py"):
        return Popen(command, env=env, preexec_fn=preexec_fn, pass_fds=pass_fds, **options)
    env = dict(os.environ if env is None else env)

    def run_program() -> None:
        if preexec_fn:
            preexec_fn()
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in (0, 1, 2, *pass_fds):
                with contextlib.suppress(OSError):
                    os.close(int(name))  # closing one tells Popen that the child has started
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Another thread may have been printing at the fork: the lock of its stream is never
        # released here, and even closing the stream would wait for it. It is kept, and not used.
        inherited = sys.stdout, sys.stderr  # noqa: F841
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [str(word) for word in command[1:]]
        sys.path[:0] = [str(Path(sys.argv[0]).parent), *env["PYTHONPATH"].split(os.pathsep)]
        if "torch" in sys.modules:
            from lightning_utilities.core import rank_zero
            from torchmetrics.utilities import prints

            for module in (rank_zero, prints):  # they read the rank when they are imported
                module.rank_zero_only.rank = int(env.get("RANK", 0))
        if Path(sys.argv[0]).name == "claims.py":  # starts sweeps, which are forked too
            subprocess.Popen = popen
        atexit._clear()
        code: Any = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    return Popen(["forked"], preexec_fn=run_program, pass_fds=pass_fds, **options)


def serve() -> None:
    import classic_cnns.__main__  # noqa: F401
    from classic_cnns.config.compose import Composer
    from classic_cnns.trainer import processes

    with contextlib.suppress(ImportError):  # where torch is a stub
        import classic_cnns.run.evaluate
        import classic_cnns.run.export
        import classic_cnns.run.predict  # noqa: F401
    processes.Popen = popen
    # As before Python 3.14: else semaphores that tqdm makes are reported as leaked, because the
    # functions that remove them at the exit of a process are not inherited by its forks.
    multiprocessing.set_start_method("fork")
    composer, children = Composer(), {}
    composer.compose(["seed=1"])  # Hydra finds its plugins and builds its parser
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "module" in request:
            answer = bool(importlib.import_module(request["module"]))
        elif "pid" in request:
            answer = children[request["pid"]].poll()
        else:
            argv = request["argv"]
            choices = tuple(w for w in argv if w.partition("=")[0] in composer.groups)
            pairs = [word.split("=", 1) for word in choices]
            if all(value in composer.groups[name] for name, value in pairs):
                composer.read_files(choices)
            out, err = (open(path, "w") for path in request["streams"])
            child = popen(
                [sys.executable, *argv], env=os.environ | request["env"], cwd=request["cwd"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
            out.close(), err.close()
            children[child.pid] = child
            answer = child.pid
        print(json.dumps(answer), flush=True)
    os._exit(0)  # a normal exit would report frozen objects as leaks


if __name__ == "__main__":
    del sys.path[0]  # tests/ itself
    serve()
