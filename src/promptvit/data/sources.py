"""Data of Hugging Face `datasets` and of webdataset, as folders with list files: `hf:NAME`, `webdataset:PATTERN`."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from promptvit.data.collection import data_home
from promptvit.data.export import Example, export_task
from promptvit.data.lists import read_classes
from promptvit.errors import DataError

SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm")


def is_foreign(source: str) -> bool:
    """Whether `local_folder` knows what to do with it."""
    return source.partition(":")[0] in READERS and ":" in source


def local_folder(source: str) -> Path:
    """The folder with the images and lists of `hf:...` or `webdataset:...`.

    It is written when it is first asked for, into `data_home()/sources`, and again only if the source has changed.
    Raises DataError if the extra is not installed, or if there are no labelled images.
    """
    kind, _, rest = source.partition(":")
    return READERS[kind](rest)


def _from_datasets(name: str) -> Path:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"hf:{name} needs datasets, which is not installed", fix="Install it: pip install 'promptvit[data]'"
        ) from None
    loaded = _load(name)
    splits = {ours: loaded[theirs] for ours, names in SPLITS.items() for theirs in names[::-1] if theirs in loaded}
    if "train" not in splits:
        raise DataError(f"hf:{name} has the splits {', '.join(map(str, loaded))}", expected="train among them")
    image, label = _columns(name, splits["train"].features)
    key = [
        (split, each.num_rows, _stamps(file["filename"] for file in each.cache_files)) for split, each in splits.items()
    ]
    names = splits["train"].features[label]
    classes = tuple(names.names) if isinstance(names, datasets.ClassLabel) else None

    def examples(split: str) -> Iterator[Example]:
        undecoded = splits[split].cast_column(image, datasets.Image(decode=False))
        for number, row in enumerate(undecoded):
            if row[image] is None or row[label] is None:
                raise DataError(f"row {number} of {split} has no image or no label", where=f"hf:{name}")
            content = row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
            yield Example(content, _ending(content), int(row[label]))

    return _exported(Path(name).name, ["hf", image, label, key], splits, examples, classes)


def _load(name: str) -> Any:
    """The splits of a dataset on the Hub, in a local folder, or saved to disk."""
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    folder = Path(name).expanduser()
    saved = any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
    try:
        loaded = load_from_disk(str(folder)) if saved else load_dataset(str(folder) if folder.is_dir() else name)
    except Exception as error:  # the library and what is below it raise of all kinds
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"hf:{name} cannot be loaded: {reason}", expected="a dataset's name on the Hub, or a local folder"
        ) from error
    if isinstance(loaded, Dataset):
        return {"train": loaded}
    assert isinstance(loaded, DatasetDict)
    return loaded


def _columns(name: str, features: Any) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    from datasets import ClassLabel, Image, Value

    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, ClassLabel)] or [
        column
        for column, kind in features.items()
        if column in ("label", "labels", "cls") and isinstance(kind, Value) and "int" in kind.dtype
    ]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"hf:{name} has image columns {images} and label columns {labels}",
            expected="one Image and one ClassLabel, or integers in a column named label",
            fix="Remove or rename columns, save_to_disk, and give that folder",
        )
    return images[0], labels[0]


def _from_webdataset(pattern: str) -> Path:
    shards = {split: files for split, names in SPLITS.items() if (files := _shards(pattern, split, names))}
    if "train" not in shards:
        raise DataError(
            f"no file matches webdataset:{pattern}",
            expected="tar files here; {split} in the pattern stands for train, val and test",
        )

    def examples(split: str) -> Iterator[Example]:
        return (example for path in shards[split] for example in _from_shard(path))

    first = shards["train"][0]
    key = [(split, _stamps(paths)) for split, paths in shards.items()]
    name = first.parent.resolve().name
    return _exported(name, ["webdataset", key], shards, examples, read_classes(first.parent))


def _shards(pattern: str, split: str, names: tuple[str, ...]) -> list[Path]:
    """The files of a split; without `{split}` in the pattern, all are for training."""
    patterns = [pattern.replace("{split}", name) for name in names]
    if patterns[0] == pattern:
        patterns = [pattern] if split == "train" else []
    found = {Path(path) for each in patterns for part in _expand(str(Path(each).expanduser())) for path in glob(part)}
    return sorted(found)


def _expand(pattern: str) -> list[str]:
    """The pattern without braces: `{000..012}` counts, `{a,b}` lists."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not braces:
        return [pattern]
    first, last, words = braces.groups()
    width = len(first or "")
    choices = words.split(",") if words else [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for choice in choices for expanded in _expand(f"{before}{choice}{after}")]


def _from_shard(path: Path) -> Iterator[Example]:
    """The examples of one tar file: files that follow one another and agree up to the first dot of their name."""
    key, files = "", {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
                if not member.isfile() or not name:
                    continue
                if name[1] != key and files:
                    yield _example(path, key, files)
                    files = {}
                content = tar.extractfile(member)
                assert content is not None, member  # it is a file
                key = name[1]
                files[name[2].lower()] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no whole tar file: {reason}", fix="Download it again") from None
    if files:
        yield _example(path, key, files)


def _example(path: Path, key: str, files: dict[str, bytes]) -> Example:
    endings = [ending for ending in IMAGE_ENDINGS if ending in files]
    if len(endings) != 1 or "cls" not in files:
        raise DataError(
            f"sample {key} has {', '.join(files)}", expected="one image (jpg, png, ...) and cls", where=str(path)
        )
    text = files["cls"].decode(errors="replace").strip()
    if not text.isdecimal():
        raise DataError(f"label {text!r} of {key}", expected="a number", where=str(path))
    return Example(files[endings[0]], endings[0], int(text))


def _exported(
    name: str,
    key: list[Any],
    splits: Iterable[str],
    examples: Callable[[str], Iterator[Example]],
    classes: tuple[str, ...] | None,
) -> Path:
    """The folder for this state of the source, written if it is not there."""
    digest = hashlib.sha256(json.dumps([key, classes]).encode()).hexdigest()[:16]
    folder = data_home() / "sources" / digest / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        export_task(folder, {split: examples(split) for split in splits}, classes=classes)
    return folder


def _stamps(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """What changes when a file does."""
    stats = [(str(Path(path).absolute()), Path(path).stat()) for path in paths]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _ending(content: bytes) -> str:
    """The ending for an encoded image, by what it is."""
    try:
        with Image.open(BytesIO(content)) as image:
            return (image.format or "img").lower().replace("jpeg", "jpg")
    except Exception:  # it stays in the list, and whoever decodes it says what is wrong
        return "img"


READERS = {"hf": _from_datasets, "webdataset": _from_webdataset}
