import pytest
import torch

from promptvit.errors import ConfigError, DeltaError, OutputError
from promptvit.methods import METHODS
from promptvit.train.config import RunConfig
from promptvit.train.folder import RunFolder

CONFIG = {"data": {"source": "x"}, "train": {"size": (3, 4), "epochs": 2}}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_new_folder_is_free_and_a_taken_one_is_not(folder):
    folder.check(CONFIG, resume=False)
    folder.write_config(CONFIG)
    with pytest.raises(OutputError, match=r"holds a run already.*--resume"):
        folder.check(CONFIG, resume=False)
    folder.check(CONFIG, resume=True)


def test_a_folder_with_other_files_is_left_alone(folder):
    folder.root.mkdir()
    (folder.root / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="is in use"):
        folder.check(CONFIG, resume=True)


def test_resuming_with_another_configuration_is_refused(folder):
    folder.write_config(CONFIG)
    changed = {**CONFIG, "train": {"size": (3, 4), "epochs": 3}}
    with pytest.raises(ConfigError, match="train differ"):
        folder.check(changed, resume=True)


def test_a_run_from_before_a_field_goes_on_with_its_default(folder):
    config = RunConfig().to_dict()
    older = {name: dict(values) for name, values in config.items()}
    del older["train"]["head_weight_decay"], older["data"]["train_share"]
    folder.write_config(older)
    folder.check(config, resume=True)
    with pytest.raises(ConfigError, match="data differ"):
        folder.check({**config, "data": {**config["data"], "train_share": 0.5}}, resume=True)


def test_a_run_from_before_a_methods_field_goes_on_with_its_default(folder):
    method = {"name": "vpt-shallow", **METHODS["vpt-shallow"].build(length=3).to_dict()}
    older = {name: value for name, value in method.items() if name not in ("depth", "dropout")}
    folder.write_config({"data": None, "method": older})
    folder.check({"method": method}, resume=True)
    with pytest.raises(ConfigError, match="method differ"):
        folder.check({"method": {**method, "dropout": 0.5}}, resume=True)


def test_a_state_comes_back_as_it_was(folder):
    assert folder.read_state() is None
    state = {"tensors": {"a": torch.randn(3)}, "rows": [{"epoch": 1, "loss": 0.1}]}
    folder.write_state(state)
    back = folder.read_state()
    assert torch.equal(back["tensors"]["a"], state["tensors"]["a"])
    assert back["rows"] == state["rows"]
    assert (folder.root / "metrics.jsonl").read_text() == '{"epoch": 1, "loss": 0.1}\n'


def test_a_damaged_state_says_what_to_do(folder):
    folder.write_state({"rows": []})
    folder.state.write_bytes(folder.state.read_bytes()[:50])
    with pytest.raises(DeltaError, match="Remove it to start the run anew"):
        folder.read_state()
