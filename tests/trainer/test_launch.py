"""The process that starts the ranks and watches them: output, result file and exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from classic_cnns.trainer import launch
from tests.forks import SRC, alive, gone

# Starts two ranks that run the code in argv[1].
DRIVER = """
import os, signal, sys, time
from classic_cnns import UserError
from classic_cnns.trainer import processes
from classic_cnns.trainer import launch
processes.GRACE = 0.5
rank = int(os.environ.get("RANK", -1))
if rank < 0:
    launch.launch(2)
else:
    launch.run_in_ranks({}, lambda: exec(sys.argv[1], globals()))
"""


@pytest.fixture
def start(spawn, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)

    def start(code: str, **env: str) -> subprocess.Popen:
        return spawn(
            [sys.executable, tmp_path / "driver.py", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(SRC)} | env,
        )

    return start


@pytest.fixture
def run(start):
    def run(code: str, **env: str) -> tuple[int, str, str]:
        process = start(code, **env)
        out, err = process.communicate(timeout=25)
        return process.returncode, out, err

    return run


def test_only_rank_0_writes_to_stdout(run):
    assert run("print('rank', rank)") == (0, "rank 0\n", "")


def test_the_stderr_of_other_ranks_is_prefixed_with_their_number(run):
    code, out, err = run("print('watch out', file=sys.stderr)")
    assert code == 0 and sorted(err.splitlines()) == ["rank 1: watch out", "watch out"]


def test_the_ranks_get_their_numbers_and_one_port(run):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    code = f"print([os.environ[n] for n in {names}], file=sys.stderr)"
    lines = run(code, OMP_NUM_THREADS="3")[2].replace("rank 1: ", "").splitlines()
    first, second = sorted(json.loads(line.replace("'", '"')) for line in lines)
    assert first[:4] == ["0", "0", "2", "127.0.0.1"] and second[:3] == ["1", "1", "2"]
    assert first[4] == second[4] and int(first[4]) > 0
    assert first[5] == second[5] == "3"  # the user's value is kept


def test_a_crash_at_interpreter_exit_does_not_fail_a_finished_run(run):
    code = "sys.late = type('Late', (), {'__del__': lambda self, abort=os.abort: abort()})()"
    assert run(code) == (0, "", "")


# Rank 0 fails 0.4 s after rank 1.
SECOND_FAILURE = "time.sleep(0.4 - 0.4 * rank); rank == 0 and 1 / 0"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("sys.exit('no licence')", "rank 1: no licence"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 was killed by SIGKILL, as happens when"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "rank 1 was killed by SIGSEGV"),
        ("os._exit(7)", "rank 1 ended with exit code 7"),
        ("raise RuntimeError('out of\\n  luck')", "rank 1: RuntimeError: out of luck"),
    ],
)
def test_the_error_names_the_rank_that_failed_first(run, failure, words, tmp_path):
    facts = f"directory={str(tmp_path)!r}, resume='; continue with: a command'"
    report = f"rank or launch.send_report({facts})\n"
    code, out, err = run(f"{report}if rank == 1: {failure}\n{SECOND_FAILURE}")
    assert code == 1 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {words}")
    assert last.endswith("; continue with: a command")
    assert "ZeroDivisionError" not in err
    # Only errors in Python have a traceback.
    assert ("Traceback" in err) == ("RuntimeError" in words)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed" and words in result["error"]


def test_a_user_error_is_one_line_and_exit_code_2(run):
    code, out, err = run("raise UserError('data=x: is not there; try data=mnist')")
    assert (code, out, err) == (2, "", "error: data=x: is not there; try data=mnist\n")


def test_the_output_of_ranks_that_exit_normally_is_kept(run):
    assert run("rank or print('diverged'); sys.exit(1)") == (1, "diverged\n", "")


def test_a_rank_that_waits_for_a_failed_one_is_ended(run):
    began = time.monotonic()
    code, _, err = run("os._exit(3) if rank else time.sleep(60)")
    assert code == 1 and "rank 1 ended with exit code 3" in err
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_ranks_once_and_sets_the_exit_code(start, number):
    code = (
        "got = []; signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
        "sys.stderr.write('up\\n')\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3); sys.stderr.write(f'got {len(got)}\\n'); sys.exit(143)"
    )
    process = start(code)
    assert sorted(process.stderr.readline() for _ in range(2)) == ["rank 1: up\n", "up\n"]
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert sorted(err.splitlines()) == ["got 1", "rank 1: got 1"]
    assert process.returncode == 128 + number


def test_a_second_signal_ends_ranks_that_do_not_stop(start):
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', file=sys.stderr,"
                    "flush=True)\nwhile True: time.sleep(1)")  # fmt: skip
    process.stderr.readline()
    process.stderr.readline()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_ranks_end_if_the_main_process_is_killed(start):
    process = start("print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)")
    pids = [int(process.stderr.readline().replace("rank 1: ", "")) for _ in range(2)]
    assert all(map(alive, pids))
    process.kill()
    assert gone(pids)


def test_a_signal_after_the_end_of_a_run_leaves_its_result(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "finished"}')
    reports = [{"rank": 0, "directory": str(tmp_path), "resume": ""}]
    with pytest.raises(SystemExit):
        launch.exit_with_reason({}, [*reports, {"rank": 0, "written": True}], [signal.SIGTERM])
    assert "finished" in (tmp_path / "result.json").read_text()
    with pytest.raises(SystemExit):
        launch.exit_with_reason({}, reports, [signal.SIGTERM])
    assert "interrupted" in (tmp_path / "result.json").read_text()


def test_a_rank_killed_by_the_end_of_another_one_is_not_the_reason(capsys):
    reports = [{"rank": 1, "code": 1, "error": "RuntimeError: no luck"}]
    with pytest.raises(SystemExit, match="1"):
        launch.exit_with_reason({0: -signal.SIGPIPE}, reports, [])
    assert capsys.readouterr().err == "error: rank 1: RuntimeError: no luck\n"
    with pytest.raises(SystemExit, match="1"):
        launch.exit_with_reason({0: -signal.SIGPIPE}, [], [])
    assert capsys.readouterr().err == "error: rank 0 was killed by SIGPIPE\n"
