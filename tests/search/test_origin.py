"""What a figure was made with."""

import subprocess

from promptvit.search.origin import commit


def git(folder, *arguments):
    settings = ("user.name=me", "user.email=me@here", "commit.gpgsign=false")
    command = ["git", *(part for each in settings for part in ("-c", each)), *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_of_a_checkout_that_tracks_the_package(tmp_path, monkeypatch):
    module = tmp_path / "site-packages" / "origin.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr("promptvit.search.origin.__file__", str(module))
    assert commit() == ""

    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "of another project")
    assert commit() == ""

    git(tmp_path, "add", str(module))
    git(tmp_path, "commit", "-m", "ours")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit() == head

    module.write_text("changed")
    assert commit() == f"{head}+"
