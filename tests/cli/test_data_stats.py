"""`promptvit data stats` as a person calls it."""

import json
import re
import subprocess
import sys

import pytest

from promptvit.analysis.feature_stats import FeatureStats
from promptvit.cli.main import main

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Statistics of 120 digits by the bundled backbone, and what the command printed."""
    return tmp_path_factory.mktemp("stats") / "digits.safetensors"


def test_a_file_is_made_and_others_are_compared_with_it(digits, images, capsys):
    assert main(["data", "stats", "digits", "--images", "120", "--out", str(digits), *CPU]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "digits train: 120 images; 128 features of vit_pico"
    assert re.fullmatch(rf"saved in {re.escape(str(digits))} \(\d+ KiB\)", out[1])
    stats = FeatureStats.read(digits)
    assert (stats.name, stats.count, stats.width) == ("digits train", 120, 128)
    assert main(["data", "stats", str(images), "--against", str(digits), "--json", *CPU]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["out"], found["extractor"]) == (32, None, "vit_pico")
    assert found["shift"]["n"] == 32
    for name in ("kernel", "frechet", "excess", "self_ratio"):
        measured = found["shift"][name]
        assert measured["low"] < measured["value"] < measured["high"]
        assert (measured["n"], measured["level"]) == (32, 0.95)


def test_bundled_statistics_stand_for_the_pretraining_images(capsys):
    command = ["data", "stats", "digits", "--split", "test", "--images", "60", "--against", "bundled"]
    assert main([*command, *CPU]) == 0
    out = capsys.readouterr().out
    assert "against CIFAR-100 train, 60 images a side, intervals of 95 %:" in out
    kid, excess = (float(re.search(rf"  {name} +(\S+)  \[", out)[1]) for name in ("KID", "excess"))
    assert min(kid, excess) > 0
    assert "at N = 60 alone" in out
    assert "note: 60 images a side are fewer than 128 features" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["digits"], 2, "nothing to make: expected --out FILE.safetensors or --against FILE"),
        (["digits", "--out", "a.json"], 2, "--out a.json: expected a name that ends with .safetensors"),
        (["digits", "--against", "none.safetensors"], 1, "none.safetensors does not exist"),
        (
            ["digits", "--against", "bundled", "--backbone", "resnet50"],
            1,
            "no statistics of the images that 'resnet50'",
        ),
        (["digits", "--against", "bundled", "--inception", "w.pth"], 2, "there are none for Inception"),
        (
            ["digits", "--against", "a", "--inception", "w", "--backbone", "vit_pico"],
            2,
            "--backbone.name with --inception",
        ),
        (["digits", "--out", "a.safetensors", "--inception", "w.pth"], 1, "Fetch weights-inception-2015-12-05"),
        (["digits", "--out", "a.safetensors", "--images", "1"], 2, "images=1; expected at least 2"),
        (["digits", "--out", "a.safetensors", "--backbone", "vit_pica"], 2, "Did you mean vit_pico"),
        (["nowhere", "--out", "a.safetensors"], 1, "'nowhere' is neither built in nor a folder"),
        (["digits", "--against", "bundled", "--backbone.image_size", "16"], 1, "features of 'vit_pico'"),
        (["digits", "--against", "bundled", "--images", "19"], 1, "expected at least 20 and 40"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_message(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "stats", *arguments, *CPU]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_copies_is_refused(images, tmp_path, capsys):
    for name in ("zero", "one"):
        (tmp_path / "copies" / name).mkdir(parents=True)
        content = next((images / name).iterdir()).read_bytes()
        for i in range(20):
            (tmp_path / "copies" / name / f"{i}.png").write_bytes(content)
    assert main(["data", "stats", str(tmp_path / "copies"), "--against", "bundled", *CPU]) == 1
    assert "32 images of copies train, of which 2 are distinct; expected different images" in capsys.readouterr().err


def test_help_needs_no_torch():
    program = (
        "import sys\nfrom promptvit.cli.main import main\n"
        "try: main(['data', 'stats', '--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'PIL') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "usage: promptvit data stats DATA" in done.stdout
