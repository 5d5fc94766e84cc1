"""`bench` and `sweep` on tasks of a few digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.search.conftest import write_task

from promptvit.cli.main import main

QUICK = ["--set", "train.epochs=1", "--set", "train.warmup_epochs=0", "--device", "cpu"]
SMALL = ["--methods", "linear", "--grid", "train.learning_rate=0.02,0.05", "--seeds", "0,1", *QUICK]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with the tasks `high` and `low`."""
    root = tmp_path_factory.mktemp("tasks")
    write_task(root / "low", (0, 1))
    write_task(root / "high", (5, 6))
    return root


@pytest.fixture(scope="module")
def done(tasks, tmp_path_factory) -> Path:
    """The folder of a finished study of `tasks`."""
    folder = tmp_path_factory.mktemp("done") / "study"
    assert main(["bench", str(tasks), "--out", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments) -> str:
    """The one line on stderr of a command that is wrong usage, and leaves nothing behind."""
    assert main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not Path("runs").exists()
    return line


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_bench_writes_all_its_files(done):
    names = {path.name for path in done.iterdir()}
    assert names >= {"results.json", "results.md", "results.csv", "results.tex", "tables.json", "report.html"}
    cells = results(done)["cells"]
    assert [(cell["task"], len(cell["points"]), len(cell["finals"])) for cell in cells] == [
        ("high", 2, 2),
        ("low", 2, 2),
    ]
    assert not list(done.rglob("*.partial"))


def test_the_same_command_goes_on_and_trains_nothing_again(done, tasks, capsys, monkeypatch):
    before = results(done)["cells"]
    monkeypatch.setattr("promptvit.train.loop.Run.train_epoch", None)
    assert main(["bench", str(tasks), "--out", str(done), *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == before


def test_table_takes_over_what_is_done_elsewhere_and_runs_nothing(done, tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("promptvit.train.loop.Run.train_epoch", None)
    arguments = ["bench", str(tasks), "--out", str(tmp_path / "other"), *SMALL, "--table"]
    assert main(arguments) == 0
    assert all(not cell["finals"] for cell in results(tmp_path / "other")["cells"])
    assert main([*arguments, "--adopt", str(done)]) == 0
    assert [final["test_top1"] for cell in results(tmp_path / "other")["cells"] for final in cell["finals"]] == [
        final["test_top1"] for cell in results(done)["cells"] for final in cell["finals"]
    ]
    assert capsys.readouterr().out


def test_a_page_keeps_what_somebody_has_written_below_reading(done, tasks, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Old\n\n## Reading\n\nMine.\n")
    assert main(["bench", str(tasks), "--out", str(done), *SMALL, "--table", "--page", str(page)]) == 0
    text = page.read_text()
    assert text.endswith("## Reading\n\nMine.\n")
    assert "Old" not in text
    assert json.loads((tmp_path / "page.json").read_text())["results"]["cells"]


def test_a_study_that_is_interrupted_leaves_the_page_as_it_was(tasks, tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Old\n")

    def interrupt(self, epoch):
        raise KeyboardInterrupt

    monkeypatch.setattr("promptvit.train.loop.Run.train_epoch", interrupt)
    assert main(["bench", str(tasks), "--out", "study", *SMALL, "--page", str(page)]) == 130
    assert page.read_text() == "# Old\n"
    assert Path("study", "results.md").exists()
    assert capsys.readouterr().err.splitlines()[-1] == "promptvit bench: interrupted"


def test_dry_builds_every_row_and_leaves_nothing(tasks, tmp_path, capsys):
    assert main(["bench", str(tasks), "--methods", "linear,vpt-deep", "--dry", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line.partition(" on ")[0] for line in lines if "high" in line] == ["linear", "vpt-deep"]
    assert not list(tmp_path.iterdir())


def test_sweep_says_what_is_best_and_what_is_next(tasks, capsys):
    arguments = ["sweep", "--data", str(tasks / "low"), "--method", "linear", "--out", "sweep", *QUICK]
    assert main([*arguments, "--sampler", "random", "--trials", "3", "--range", "train.learning_rate=0.001:0.1"]) == 0
    out = capsys.readouterr().out
    assert "3 complete" in out
    assert "final run, seed 0" in out
    assert "next: promptvit predict sweep/runs/low/linear/final/" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.epoch=3"], "train.epoch: no such field"),
        (["--set", "epochs=3"], "--set epochs=3"),
        (["--set", "train.epochs=2.5"], "train.epochs=2.5: expected int"),
        (["--set", "train.epochs=0"], "epochs=0: expected at least 1"),
        (["--set", "train.drop_last=False"], "train.drop_last='False': expected true or false"),
        (["--set", "train.weight_decay=inf"], "inf; expected a finite number"),
        (["--set", "train.seed=3"], "it is decided by the protocol's seeds"),
        (["--set", "data.train_on=train+val"], "it is decided by the protocol's `retrain`"),
        (["--set", "method.lenght=5"], "method.lenght: every row lacks it"),
        (["--set", "train.learning_rate=1", "--grid", "train.learning_rate=1,2"], "both fixed and searched"),
        (["--grid", "train.learning_rate=0.1,abc"], "train.learning_rate='abc': expected float or null"),
        (["--grid", "train.learning_rate="], "--grid train.learning_rate="),
        (["--range", "train.learning_rate=1"], "--range train.learning_rate=1"),
        (["--sampler", "random", "--range", "train.learning_rte=0.1:1"], "train.learning_rte: no such field"),
        (["--range", "train.learning_rate=0.1:1"], "with sampler=grid"),
        (["--sampler", "gird"], "sampler='gird'"),
        (["--pruner", "ash"], "pruner='ash'"),
        (["--trials", "0"], "trials=0"),
        (["--seeds", "1,x"], "--seeds 1,x"),
        (["--seeds", "1,1"], "seeds=[1, 1]"),
        (["--workers", "loca:2"], "workers='loca:2'"),
        (["--device", "gpu"], "device='gpu'"),
        (["--protocol", "vtp"], "Did you mean vpt"),
        (["--adopt", "nowhere"], "--adopt nowhere"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_is_mistyped_is_named_before_anything_is_done(tasks, capsys, arguments, message):
    assert message in refused(capsys, "bench", tasks, "--methods", "linear", *arguments)


@pytest.mark.parametrize("arguments", [["--set", "train.epoch=3"], ["--workers", "loca:2"], ["--seeds", "x"]])
def test_sweep_names_it_too(tasks, capsys, arguments):
    assert arguments[1].partition("=")[0] in refused(capsys, "sweep", "--data", tasks / "low", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "linaer"], "Did you mean linear"),
        (["--methods", ""], "unknown method ''"),
        (["--tasks", "lwo"], "Did you mean low"),
        (["--config", "no.yaml"], "no.yaml"),
    ],
)
def test_names_that_are_not_there(tasks, capsys, arguments, message):
    data = [] if "--config" in arguments else [tasks]
    assert main([*map(str, ["bench", *data, *QUICK, *arguments])]) in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


def study_file(tasks: Path, **more) -> str:
    """A study of two rows, one of which has a rate of its own."""
    values = {
        "name": "mine",
        "data": [str(tasks)],
        "tasks": ["low"],
        "rows": {
            "own": {"name": "linear", "settings": {"train.learning_rate": 0.02}},
            "vpt": {"name": "vpt-deep", "length": 1},
        },
        **more,
    }
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    return "mine.yaml"


def test_a_study_file_takes_what_is_typed_beside_it(tasks):
    file = study_file(tasks, change={"grid": {"train.learning_rate": [0.01, 0.02]}})
    assert main(["bench", "--config", file, *QUICK, "--set", "train.learning_rate=0.05", "--seeds", "4"]) == 0
    found = results(Path("runs", "mine"))
    assert found["protocol"]["changed"]["settings"]["train.learning_rate"] == 0.05
    assert "grid" not in found["protocol"]["changed"]
    for cell in found["cells"]:
        (final,) = cell["finals"]
        config = yaml.safe_load(Path("runs", "mine", final["folder"], "config.yaml").read_text())
        assert (config["train"]["learning_rate"], config["train"]["seed"]) == (0.05, 4)


@pytest.mark.parametrize("typed", [["--methods", "linear"], ["--backbone", "x"], ["--sampler", "tpe"]])
def test_a_study_file_beside_what_would_be_left_out_is_refused(tasks, capsys, typed):
    assert f"--config with {typed[0]}" in refused(capsys, "bench", *typed, "--config", study_file(tasks))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"row": {}}, "row in a study"),
        ({"rows": {"a": {"name": "linear", "lenght": 3}}}, "no such field"),
        ({"rows": {"a": {"name": "vpt-deep", "length": 2.5}}}, "length=2.5: expected int"),
        ({"rows": {"a": {"name": "vpt-deep", "tasks": {"lwo": {"length": 3}}}}}, "Did you mean low"),
        ({"rows": {"a": {"name": "linear", "settings": {"train.seed": 3}}}}, "decided by the protocol's seeds"),
        ({"rows": {"a": None}}, "not a study"),
        ({"change": {"gird": {}}}, "gird"),
        ({"change": {"grid": {"train.learning_rate": []}}}, "expected at least one value"),
        ({"backbones": [{"name": "vit_pico"}, {"name": "vit_pico", "image_size": 64}]}, "backbone vit_pico twice"),
        ({"search": {"sampler": "random", "ranges": {"train.learning_rate": [1]}}}, "not a study"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_study_file_with_a_mistake(tasks, capsys, more, message):
    assert message in refused(capsys, "bench", "--config", study_file(tasks, **more))


def test_two_tasks_of_one_name_are_refused(tasks, tmp_path, capsys):
    write_task(tmp_path / "second" / "low", (3, 4))
    assert "2 tasks called low" in refused(capsys, "bench", tasks, tmp_path / "second", "--methods", "linear")


def alive(group: int) -> list[str]:
    """The processes of a group that have not ended; nobody may be there to collect those that have."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()]
    return [line[2] for line in lines if line[0] == str(group) and not line[1].startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["in-order", "local:2"])
@pytest.mark.parametrize("when", ["at the start", "in the middle"])
def test_ctrl_c_ends_it_with_130_and_nothing_is_lost(tasks, tmp_path, workers, when):
    # Whoever runs the tests in the background may ignore Ctrl-C, which a process would inherit.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from promptvit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "bench", str(tasks), "--out", "study", *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--workers", workers], stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    wanted = Path("study", "study.yaml") if when == "at the start" else Path("study", "runs")
    while not wanted.exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers hear it too
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 20  # multiprocessing's own tracker ends a moment later
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid)
    assert main(["bench", str(tasks), "--out", "study", *SMALL]) == 0
    assert all(len(cell["points"]) == len(cell["finals"]) == 2 for cell in results(Path("study"))["cells"])
