import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptvit.cli.main import main


@pytest.fixture
def tasks(tmp_path):
    """Two tasks of list files below one folder."""
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        for split, count in (("train", 4), ("val", 2), ("test", 2)):
            folder = tmp_path / "mine" / name / "images" / split
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            lines = [f"images/{split}/{i}.png {i % 2}" for i in range(count)]
            (tmp_path / "mine" / name / f"{split}.txt").write_text("\n".join(lines))
    return tmp_path / "mine"


def test_check_finds_nothing_or_says_where(tasks, capsys):
    assert main(["data", "check", str(tasks)]) == 0
    assert capsys.readouterr().out.strip() == f"{tasks}: nothing found"
    (tasks / "two" / "images" / "test" / "1.png").unlink()
    assert main(["data", "check", str(tasks)]) == 1
    captured = capsys.readouterr()
    assert captured.out.strip() == "problem  missing     two/test.txt:2: no image images/test/1.png"
    assert "1 problem in" in captured.err
    assert captured.err.strip().endswith("Mend them, or accept them: --allow missing")
    assert main(["data", "check", str(tasks / "two"), "--allow", "missing", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["severity"], found["task"], found["where"]) == ("note", "two", "test.txt:2")


def test_check_takes_whatever_data_takes(images, capsys):
    assert main(["data", "check", str(images)]) == 0
    assert capsys.readouterr().out == f"note     lists       {images.name}: no test images\n"


def test_prepare_says_what_there_is_and_how_it_was_refused(tasks, tmp_path, capsys):
    (tasks / "one").rename(tasks / "cifar100")
    out = tmp_path / "out"
    command = ["data", "prepare", "vtab-1k", "--from", str(tasks), "--out", str(out)]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "problem  tasks       1 of 19 tasks of vtab-1k are there, without caltech101, dtd, " in captured.out
    assert "--allow tasks,sizes,classes" not in captured.out
    assert "accept them: --allow tasks,sizes" in captured.err
    assert not out.exists()
    assert main([*command, "--allow", "tasks,sizes,classes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "prepared"
    assert main(command) == 0
    assert f"{out}: complete already; 2 tasks, 16 images, each checked" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0  # what was allowed stays so
    assert "note     sizes       cifar/test.txt: 2 images; expected 10,000 of test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no WHAT; expected prepare, check, describe"),
        (["chekc"], 2, "unknown WHAT 'chekc'. Did you mean check"),
        (["check", "nowhere"], 1, "no folder"),
        (["check", "x", "--allow", "duplicate"], 2, "Did you mean duplicates?"),
        (["prepare", "vtab", "--from", "x"], 2, "vtab"),
        (["prepare", "vtab-1k"], 2, "from"),
        (["prepare", "vtab-1k", "--from", "nowhere"], 1, "no file or folder nowhere"),
        (["prepare", "vtab-1k", "--from", "x", "--set", "y"], 2, "--set: expected only with raw"),
        (["prepare", "vtab-1k", "--from", "x", "--splits", "y"], 2, "--splits: expected only with fgvc"),
        (["prepare", "raw", "--from", "x"], 2, "raw without --set"),
        (
            ["prepare", "raw", "--from", "x", "--set", "cifar100", "--copy", "--test", "0"],
            2,
            "--copy: expected only with",
        ),
        (["prepare", "raw", "--from", "nowhere", "--set", "cifar1"], 2, "Did you mean cifar10"),
        (["describe", "digits", "--out", "a.jpg"], 2, "expected a name that ends with .png"),
        (["describe", "nowhere"], 1, "'nowhere' is neither built in nor a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_message(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTVIT_HOME", str(tmp_path / "home"))
    assert main(["data", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_describe_counts_and_draws(tasks, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "describe", "digits", "--out", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "digits: 10 classes; 1,797 pixels" in out
    assert "train    1,078 images; largest class 1: 109 (10.1 %), smallest 8: 104" in out
    with Image.open(sheet) as image:
        assert image.format == "PNG"
    assert main(["data", "describe", str(tasks), "--json"]) == 0
    assert [task["name"] for task in json.loads(capsys.readouterr().out)["tasks"]] == ["one", "two"]
    assert main(["data", "describe", str(tasks / "one")]) == 0
    assert "train        4 images; all classes alike (50.0 %)" in capsys.readouterr().out


def test_a_raw_set_is_named_as_ours(tmp_path, capsys):
    for i in range(1010):
        path = tmp_path / "root" / "eurosat" / "2750" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(path)
    command = ["data", "prepare", "raw", "--set", "eurosat", "--from", str(tmp_path / "root")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "seeded subset (seed 0) of eurosat, not VTAB's" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["prepare", "check", "describe"])
def test_help_needs_no_torch(action):
    program = (
        "import sys\nfrom promptvit.cli.main import main\n"
        f"try: main(['data', '{action}', '--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'PIL') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert f"usage: promptvit data {action}" in done.stdout


def test_the_shared_tasks_have_no_problems(capsys):
    shared = Path(os.environ.get("PROMPTVIT_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mini-vtab"
    if not shared.is_dir():
        pytest.skip(f"no {shared}; set PROMPTVIT_DATA")
    assert main(["data", "check", str(shared)]) == 0
    assert "problem" not in capsys.readouterr().out
