import pytest

from promptvit.errors import ConfigError
from promptvit.methods import heads
from promptvit.train import config
from promptvit.train.config import RunConfig, TrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: expected 0 or more"),
        ({"head_weight_decay": -1.0}, "head_weight_decay=-1.0: expected 0 or more"),
        ({"head_weight_decay": float("nan")}, "head_weight_decay=nan"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs=nan"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected above 0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"rate_batch": 0}, "rate_batch=0: expected at least 1"),
        ({"adam_epsilon": 0.0}, "adam_epsilon=0.0: expected above 0"),
        ({"final_rate": -1.0}, "final_rate=-1.0: expected 0 or more"),
        ({"final_rate": 0.1, "schedule": "constant"}, "final_rate=0.1 with schedule=constant: expected 0"),
        ({"final_rate": 0.1, "learning_rate": 0.01}, "final_rate=0.1: expected at most learning_rate=0.01"),
        (
            {"schedule_steps": "epoch", "epochs": 10, "warmup_epochs": 10.0},
            "warmup_epochs=10.0 with schedule_steps=epoch: expected at most 9",
        ),
        ({"decays": "all", "delta_weight_decay": 0.1}, "delta_weight_decay=0.1 with decays=all: prompts have"),
        ({"decays": "all", "head_weight_decay": 0.0}, "head_weight_decay=0.0 with decays=all: the head has"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0: expected a value in \[0, 1\)"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**fields)


def test_a_wrong_choice_is_refused(untyped):
    with pytest.raises(ConfigError, match="optimizer='adam': expected one of adamw, sgd"):
        TrainConfig(optimizer="adam")
    with pytest.raises(ConfigError, match=r"decays='none': expected one of matrices, weights, all.*test='always'"):
        TrainConfig(decays="none", test="always")


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(epochs=0, batch_size=0, momentum=1.0)
    assert all(name in str(caught.value) for name in ("epochs", "batch_size", "momentum"))


def test_a_method_needs_a_name():
    with pytest.raises(ConfigError, match="expected a `name`"):
        RunConfig(method={"length": 3})


def test_the_heads_starts_are_those_that_heads_know():
    assert config.HeadInit == heads.HeadInit


def test_configs_need_no_torch(run_python):
    assert run_python("import sys, promptvit.train.config; print('torch' in sys.modules)") == "False"
