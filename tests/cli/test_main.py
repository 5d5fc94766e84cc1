import subprocess
import sys

import pytest

from promptvit.cli.main import VERBS, main


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_no_verb_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "usage: promptvit" in capsys.readouterr().out


def test_an_unknown_verb_gets_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "unknown verb 'trian'. Did you mean train?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("promptvit 0.")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_needs_no_torch(verb):
    program = (
        "import sys\nfrom promptvit.cli.main import main\n"
        f"try: main([*{verb.split()}, '--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'PIL') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "usage: promptvit" in done.stdout
