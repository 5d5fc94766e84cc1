"""Several processes on one study, with its record in a real PostgreSQL server on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

BIN = next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
BIN = BIN or (Path(found).parent if (found := shutil.which("initdb")) else None)
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.skipif(BIN is None, reason="PostgreSQL's server is not installed (Debian: apt-get install postgresql)"),
]
PROCESSES = 8


def as_server(*command: object) -> list[str]:
    """A command under an account that PostgreSQL accepts: it refuses root."""
    own = [] if os.getuid() else ["runuser", "-u", "postgres", "--"]
    return [*own, *map(str, command)]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The URL of a fresh server's database."""
    assert BIN is not None
    root = Path("/tmp") / f"promptvit-postgres-{os.getpid()}"
    root.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if not os.getuid():
        shutil.chown(root, "postgres", "postgres")
    data = root / "data"
    try:
        subprocess.run(
            as_server(BIN / "initdb", "-D", data, "--auth=trust", "--username=promptvit", "--no-sync"),
            check=True,
            capture_output=True,
        )
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {root} -c fsync=off"
        subprocess.run(
            as_server(BIN / "pg_ctl", "-D", data, "-w", "-o", options, "-l", root / "log", "start"),
            check=True,
            capture_output=True,
        )
        yield f"postgresql+psycopg://promptvit@127.0.0.1:{port}/postgres"
        subprocess.run(
            as_server(BIN / "pg_ctl", "-D", data, "-m", "immediate", "stop"), check=True, capture_output=True
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from promptvit.search import record
record.HEARTBEAT_SECONDS, record.GRACE_SECONDS = 1, 4
from promptvit.search.plan import StudyPlan
from promptvit.search.study import Study
from tests.search.conftest import Toy

plan, folder, url, log = sys.argv[1:]
work = lambda job: Toy(real=job, log=log, seconds=0.2)
with Study(StudyPlan.read(Path(plan)), Path(folder), storage=url, work=work) as study:
    print("ready", flush=True)
    sys.stdin.readline()
    study.run()
"""


def start(plan: Path, folder: Path, url: str, log: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, (plan, folder, url, log))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])},
    )


def begin(processes: list[subprocess.Popen]) -> None:
    """All at once."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def end(process: subprocess.Popen) -> int:
    """Its exit status."""
    process.communicate(timeout=240)
    return process.returncode


@pytest.fixture
def plan_file(small_plan, tmp_path) -> Path:
    import yaml

    values = small_plan.to_dict()
    values["change"] = {"grid": {"train.learning_rate": [0.01 * step for step in range(1, 13)]}}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_eight_processes_repeat_and_lose_nothing(plan_file, database, tmp_path):
    from promptvit.search.plan import StudyPlan
    from promptvit.search.study import Study

    log, folder = tmp_path / "log", tmp_path / "study"
    processes = [start(plan_file, folder, database, log) for _ in range(PROCESSES)]
    begin(processes)
    assert [end(process) for process in processes] == [0] * PROCESSES
    lines = [line.split() for line in log.read_text().splitlines()]
    planned = 2 * (12 + 2 * 12) + 2 * 2 * 2
    assert Counter(Counter(folder for folder, _ in lines).values()) == {1: planned}
    assert len({process for _, process in lines}) == PROCESSES
    with Study(StudyPlan.read(plan_file), folder, storage=database) as study:
        results = study.results()
    assert {cell.chosen["train.learning_rate"] for cell in results.cells} == {0.05}
    assert all(len(cell.finals) == 2 for cell in results.cells)
    assert {point.state for cell in results.cells for point in cell.points} == {"complete"}


def test_what_a_killed_process_was_running_is_run_again_by_others(plan_file, database, tmp_path):
    import yaml

    from promptvit.search.plan import StudyPlan
    from promptvit.search.study import Study

    plan_file.write_text(yaml.safe_dump({**yaml.safe_load(plan_file.read_text()), "name": "killed"}))
    log, folder = tmp_path / "log", tmp_path / "study"
    processes = [start(plan_file, folder, database, log) for _ in range(2)]
    begin(processes)
    while not log.exists() or len(log.read_text().splitlines()) < 8:
        time.sleep(0.05)
    processes[0].send_signal(signal.SIGKILL)
    assert end(processes[0]) == -signal.SIGKILL
    assert end(processes[1]) == 0
    counts = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert len(counts) == 2 * (12 + 2 * 12) + 2 * 2 * 2
    assert sum(counts.values()) <= len(counts) + 1
    with Study(StudyPlan.read(plan_file), folder, storage=database) as study:
        assert all(len(cell.finals) == 2 for cell in study.results().cells)


def test_a_server_that_is_not_there_is_named_without_the_password(small_plan, tmp_path):
    from promptvit.errors import ConfigError
    from promptvit.search.study import Study

    with pytest.raises(ConfigError, match="cannot be opened") as error:
        Study(small_plan, tmp_path / "study", storage="postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)
