import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from promptvit.data.catalog import VTAB
from promptvit.data.check import problems
from promptvit.data.collection import MANIFEST, open_collection
from promptvit.data.config import DataConfig
from promptvit.data.load import load_task
from promptvit.data.prepare import HUB, prepare
from promptvit.errors import DataError, OutputError

MINI_VTAB = Path(os.environ.get("PROMPTVIT_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mini-vtab"
SMALL = ("sizes",)  # the tasks made here are
SHARED = {"cifar": "grocery", "caltech101": "grocery", "patch_camelyon": "pneumonia", "dsprites_ori": "sprites"}


@pytest.fixture(scope="module")
def bundle(make_task, tmp_path_factory):
    """All 19 tasks by their own names, small: of pictures from the shared tasks, where they are, else drawn."""
    root = tmp_path_factory.mktemp("bundle") / "vtab-1k"
    for task in VTAB:
        source = MINI_VTAB / SHARED.get(task.name, "cifar10" if task.classes >= 10 else "bccd_cells")
        cut(source, root / task.name) if source.is_dir() else make_task(root / task.name)
    return root


def cut(source, folder):
    """A few images of every split of a task, as a bundle has them."""
    joint = []
    for split, count in (("train800", 4), ("val200", 2), ("test", 3)):
        lines = (source / f"{split}.txt").read_text().split("\n")
        (folder / "images" / split).mkdir(parents=True)
        kept = []
        for number, line in enumerate(lines[: -1 : len(lines) // count][:count]):
            path, label = line.split()
            name = f"images/{split}/{number:06d}{Path(path).suffix}"
            shutil.copyfile(source / path, folder / name)
            kept.append(f"{name} {label}\n")
        (folder / f"{split}.txt").write_text("".join(kept))
        joint += kept if split != "test" else []
    (folder / "train800val200.txt").write_text("".join(joint))


@pytest.fixture
def mine(bundle, tmp_path):
    """A copy to break."""
    shutil.copytree(bundle, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "prepared" / "vtab-1k"


def pack(folder, archive):
    return shutil.make_archive(str(archive.with_suffix("")), "zip", folder.parent, folder.name)


def left_behind(out):
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


ALIASES = {
    "own": [task.name for task in VTAB],
    "first": [(*task.aliases, task.name.upper())[0] for task in VTAB],
    "last": [f"vtab-{(task.name, *task.aliases)[-1]}" for task in VTAB],
    "groups": [f"{task.group.title()}/{task.name.replace('_', '-').title()}" for task in VTAB],
}


@pytest.mark.parametrize("names", ALIASES.values(), ids=ALIASES)
def test_each_set_of_names_is_accepted(bundle, tmp_path, out, names):
    for task, name in zip(VTAB, names, strict=True):
        (tmp_path / "renamed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "renamed" / name).symlink_to(bundle / task.name)
    done = prepare("vtab-1k", str(tmp_path / "renamed"), out, allowed=SMALL)
    assert (done.state, done.folder) == ("prepared", out)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(task.name for task in VTAB)
    assert left_behind(out) == ["vtab-1k"]
    found = open_collection(str(out))
    assert [task.name for task in found.tasks] == [task.name for task in VTAB]
    task = load_task(DataConfig(source=str(found.tasks[6].folder)))
    assert (len(task.train), len(task.val), len(task.classes)) == (4, 2, 397)  # as many names as there are classes


def test_the_shared_tasks_pass_under_other_names(mini_vtab, tmp_path, out):
    names = ("Natural/CIFAR100", "flowers102", "pcam", "resisc", "dsprites_orientation")
    for name, folder in zip(names, ("cifar10", "grocery", "pneumonia", "bccd_cells", "sprites"), strict=True):
        (tmp_path / "renamed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "renamed" / name).symlink_to(mini_vtab / folder)
    done = prepare("vtab-1k", str(tmp_path / "renamed"), out, allowed=("sizes", "classes", "tasks"))
    assert done.state == "prepared"
    assert done.manifest["tasks"]["cifar"]["counts"] == {"train": 800, "val": 200, "test": 2000, "train+val": 1000}
    assert done.manifest["tasks"]["cifar"]["images"]["formats"] == {"PNG": 3000}


def drop(mine):
    (mine / "dtd" / "images" / "test" / "000001.png").unlink()


def change_label(path, label):
    """Give the second line another label."""
    lines = path.read_text().split("\n")
    lines[1] = f"{lines[1].split()[0]} {label(int(lines[1].split()[1]))}"
    path.write_text("\n".join(lines))


def relabel(mine):
    change_label(mine / "svhn" / "train800.txt", lambda label: int(label == 0))


def mislabel(mine):
    change_label(mine / "svhn" / "test.txt", lambda label: 10)


def remove(mine):
    shutil.rmtree(mine / "kitti")


def repeat(mine):
    images = mine / "sun397" / "images"
    shutil.copy(images / "train800" / "000002.png", images / "test" / "000002.png")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (drop, "missing", "dtd/test.txt:2: no image images/test/000001.png"),
        (relabel, "union", "svhn/train800.txt:2: images/train800/000001.png "),
        (mislabel, "labels", "svhn/test.txt:2: label 10 of images/test/000001.png; expected 0 to 9"),
        (remove, "tasks", "18 of 19 tasks of vtab-1k are there, without kitti"),
        (repeat, "duplicates", "sun397/test.txt:3: images/test/000002.png is the same picture as train800.txt:3"),
    ],
)
def test_a_harmed_bundle_is_refused_with_task_file_and_line(mine, tmp_path, out, harm, kind, message, packed):
    harm(mine)
    source = pack(mine, tmp_path / "mine.zip") if packed else str(mine)
    done = prepare("vtab-1k", source, out, allowed=SMALL)
    assert done.state == "refused"
    assert {each.kind for each in problems(done.findings)} == {kind}
    assert any(str(each).startswith(message) for each in problems(done.findings))
    assert not out.exists()
    assert left_behind(out) == ([".vtab-1k.partial"] if packed else [])
    again = prepare("vtab-1k", source, out, allowed=(*SMALL, kind))
    assert again.state == "prepared"
    assert again.manifest["allowed"] == sorted((*SMALL, kind))
    assert left_behind(out) == ["vtab-1k"]


def test_a_mended_folder_is_read_anew(mine, out):
    path = mine / "svhn" / "test.txt"
    good = path.read_text()
    mislabel(mine)
    assert prepare("vtab-1k", str(mine), out, allowed=SMALL).state == "refused"
    path.write_text(good)
    assert prepare("vtab-1k", str(mine), out, allowed=SMALL).state == "prepared"


def test_a_mended_zip_of_the_same_size_is_read_anew(mine, out, tmp_path):
    archive = Path(pack(mine, tmp_path / "mine.zip"))
    good = archive.stat().st_size
    path = mine / "svhn" / "test.txt"
    text = path.read_text()
    path.write_text(text.replace("images/test/000001", "images/test/00000X"))
    pack(mine, archive)
    assert archive.stat().st_size == good
    assert prepare("vtab-1k", str(archive), out, allowed=SMALL).state == "refused"
    path.write_text(text)
    pack(mine, archive)
    assert prepare("vtab-1k", str(archive), out, allowed=SMALL).state == "prepared"


def test_a_truncated_zip_is_named_and_leaves_nothing(bundle, tmp_path, out):
    archive = tmp_path / "bundle.zip"
    pack(bundle, archive)
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"bundle.zip is no whole zip file"):
        prepare("vtab-1k", str(archive), out)
    assert left_behind(out) == []


def test_a_zip_damaged_inside_leaves_nothing(bundle, tmp_path, out):
    archive = tmp_path / "bundle.zip"
    pack(bundle, archive)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        member = file.getinfo("vtab-1k/svhn/images/test/000001.png")
    place = member.header_offset + 30 + len(member.filename)
    content[place + 20 : place + 40] = b"\0" * 20
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"bundle.zip is no whole zip.*in vtab-1k/svhn/images/test/000001.png"):
        prepare("vtab-1k", str(archive), out)
    assert left_behind(out) == []


def test_links_copies_and_archives_are_the_same_data(bundle, tmp_path):
    archive = pack(bundle, tmp_path / "bundle.zip")
    linked = prepare("vtab-1k", str(bundle), tmp_path / "a", allowed=SMALL)
    again = prepare("vtab-1k", str(bundle), tmp_path / "b", allowed=SMALL)
    copied = prepare("vtab-1k", str(bundle), tmp_path / "c", copy=True, allowed=SMALL)
    unpacked = prepare("vtab-1k", archive, tmp_path / "d", allowed=SMALL)
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()
    assert linked.manifest == again.manifest
    assert linked.manifest["tasks"] == copied.manifest["tasks"] == unpacked.manifest["tasks"]
    assert (tmp_path / "a" / "dtd" / "images").is_symlink()
    assert not (tmp_path / "c" / "dtd" / "images").is_symlink()
    (tmp_path / "d").rename(tmp_path / "moved")  # with what was unpacked
    assert problems(prepare("vtab-1k", str(tmp_path / "moved"), tmp_path / "e", allowed=SMALL).findings) == ()


def test_a_second_call_finds_it_complete(bundle, out):
    first = prepare("vtab-1k", str(bundle), out, allowed=SMALL)
    second = prepare("vtab-1k", str(bundle), out, progress=lambda what, done, total: pytest.fail(what))
    assert second.state == "complete already"
    assert (second.findings, second.manifest) == (first.findings, first.manifest)
    with pytest.raises(OutputError, match=r"holds vtab-1k from .* already. Remove that folder, or choose another"):
        prepare("vtab-1k", str(bundle.parent), out)
    (out / "dtd" / "test.txt").write_text("changed")
    with pytest.raises(DataError, match=r"dtd/test.txt is not as it was prepared"):
        prepare("vtab-1k", str(bundle), out)


def test_places_that_cannot_be(bundle, tmp_path):
    with pytest.raises(DataError, match="lie in each other"):
        prepare("vtab-1k", str(bundle), bundle / "inside")
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(DataError, match="lie in each other"):
        prepare("vtab-1k", str(bundle), tmp_path / "link" / "inside")
    (tmp_path / "link").unlink()
    with pytest.raises(OutputError, match="is in use"):
        prepare("vtab-1k", str(bundle), bundle)
    with pytest.raises(DataError, match="no file or folder nowhere; expected a folder, a zip file"):
        prepare("vtab-1k", "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no task of vtab-1k in .*empty; expected folders with the lists"):
        prepare("vtab-1k", str(tmp_path / "empty"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_killed_preparation_goes_on(bundle, tmp_path, out):
    archive = pack(bundle, tmp_path / "bundle.zip")
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom promptvit.data.prepare import prepare\n"
        "def stop(what, done, total):\n    if what == 'unpacking' and done == 100: os.kill(os.getpid(), 9)\n"
        "prepare('vtab-1k', sys.argv[1], Path(sys.argv[2]), progress=stop)"
    )
    killed = subprocess.run([sys.executable, "-c", program, archive, str(out)], check=False)
    assert killed.returncode == -9
    assert not out.exists()
    there = {path: path.stat().st_mtime_ns for path in out.parent.rglob("0*")}
    assert 50 < len(there) < 19 * 9
    time.sleep(0.01)
    done = prepare("vtab-1k", archive, out, allowed=SMALL)
    assert done.state == "prepared"
    kept = [path for path in out.rglob(".source/**/0*") if path.stat().st_mtime_ns in there.values()]
    assert len(kept) >= len(there)
    assert left_behind(out) == ["vtab-1k"]


def test_an_address_is_loaded_once(bundle, tmp_path, out):
    served = tmp_path / "served"
    served.mkdir()
    pack(bundle, served / "bundle.zip")
    (served / "page.zip").write_text("<html>Please sign in</html>")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, text, *values):
            asked.append(text % values)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served)) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert prepare("vtab-1k", f"{url}/bundle.zip", out).state == "refused"  # too small
            assert prepare("vtab-1k", f"{url}/bundle.zip", out, allowed=SMALL).state == "prepared"
            assert len(asked) == 1
            for name in ("page.zip", "none.zip"):
                with pytest.raises(DataError, match=f"no whole zip|{name} answers 404"):
                    prepare("vtab-1k", f"{url}/{name}", out.with_name("other"))
        finally:
            server.shutdown()
    assert left_behind(out) == ["vtab-1k"]


def test_without_a_network_the_hub_says_what_to_fetch(out, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        DataError,
        match=r"Fetch https://huggingface.co/datasets/XiN0919/VTAB-1k by hand.*prepare vtab-1k --from FOLDER_OR_ZIP",
    ):
        prepare("vtab-1k", "hub", out)
    assert left_behind(out) == []


def test_what_the_hub_has_sent_before_is_used(bundle, out, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub" / f"datasets--{HUB['vtab-1k'].replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    pack(bundle, place / "snapshots" / ("0" * 40) / "vtab-1k.zip")
    done = prepare("vtab-1k", "hub", out, allowed=SMALL)
    assert done.state == "prepared"
    assert done.manifest["source"] == {"kind": "hub", "name": HUB["vtab-1k"]}
    assert prepare("vtab-1k", "hub", out).state == "complete already"


def test_without_links_it_says_how_to_copy(bundle, out, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(OutputError, match=r"cannot be a link: Operation not permitted. Copy the images.*--copy"):
        prepare("vtab-1k", str(bundle), out)
    assert prepare("vtab-1k", str(bundle), out, copy=True, allowed=SMALL).state == "prepared"
    assert json.loads((out / MANIFEST).read_text())["images"] == "copies"
