"""Every recipe is what its table says, parses as the command line does, and takes a step on a small backbone."""

import re
import shlex
from functools import cache

import pytest
import torch
from scripts import recipes
from torch.nn import functional

import promptvit as pv
from promptvit.backbones.load import load_source
from promptvit.cli.options import expand, option_value, parse
from promptvit.cli.train import make_train_parser
from promptvit.methods.prompts import Prompts
from promptvit.train.config import RunConfig
from promptvit.train.loop import make_method
from promptvit.train.optim import make_optimizer

RECIPES = {recipe.name: recipe for recipe in recipes.recipes()}
PLACEHOLDERS = {"$P": "40", "$S": "0.5", "DIR": "data/mine"}
ROOT = recipes.FOLDER.parents[1]


def parsed(*arguments: str) -> RunConfig:
    """What `promptvit train` makes of its arguments."""
    expanded = expand(arguments)
    return RunConfig.from_dict(parse(parser_for(option_value(expanded, "--method.name")), expanded))


@cache
def parser_for(method: str | None):
    """The parser itself takes longest."""
    return make_train_parser(method, with_method=True)


def commands(recipe: recipes.Recipe) -> list[list[str]]:
    """The arguments of the commands in its header."""
    texts = re.findall(r"^# command: .*?promptvit train (.*?)(?:; done)?$", recipe.render(), re.MULTILINE)
    return [[PLACEHOLDERS.get(word, word) for word in shlex.split(text)] for text in texts]


def path(recipe: recipes.Recipe) -> str:
    return f"recipes/spt/{recipe.name}.yaml"


def test_the_files_are_those_of_the_script():
    assert recipes.committed() == recipes.rendered(), "run `make docs`"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_a_configuration_of_train(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, *others = (parsed(*arguments) for arguments in (["--config", path(recipe)], *commands(recipe)))
    for section, values in config.to_dict().items():
        given = recipe.config[section]
        assert {name: values[name] for name in given} == given
    assert others
    assert all(make_method(each).needs_samples == (each.method["name"] != "vpt-deep") for each in (config, *others))


def test_options_of_a_command_win(monkeypatch):
    monkeypatch.chdir(ROOT)
    spt, vpt = (parsed(*arguments) for arguments in commands(RECIPES["study-length"]))
    assert make_method(spt) == pv.SPT(length=40, pooling="all")
    assert make_method(vpt) == pv.VPT(length=40, pooling="all")
    *_, supervised, caltech = (parsed(*arguments) for arguments in commands(RECIPES["init-frozen-mean"]))
    assert make_method(supervised) == pv.SPT(length=20, source="mean", across="sample", fixed=True)
    assert supervised.backbone.pool is None
    assert caltech.data.augment == "none"


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_counts_are_those_of_the_paper(depth):
    counts = [recipes.trained(depth, classes) for classes in recipes.CLASSES.values()]
    assert sum(counts) / 5 == pytest.approx({"deep": 364_727, "shallow": 257_207}[depth], abs=1)
    assert counts[0] == {"deep": 338_120, "shallow": 230_600}[depth]


@pytest.mark.parametrize(("pretraining", "row"), [(p, r) for p in recipes.PRETRAININGS for r in recipes.LENGTHS])
def test_the_mean_of_fgvc_is_that_of_its_tasks(pretraining, row):
    numbers = recipes.results(pretraining, row)
    mean = sum(float(numbers[task]) for task in recipes.CLASSES) / 5
    assert mean == pytest.approx(float(numbers["FGVC"]), abs=0.021)  # the paper rounds the tasks


KINDS = {repr((each.config["method"], each.config["backbone"].get("pool"))): each for each in RECIPES.values()}


@pytest.mark.parametrize("recipe", KINDS.values(), ids=lambda recipe: recipe.name)
def test_one_of_each_kind_takes_a_step(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parsed("--config", path(recipe), "--backbone", "vit_pico", "--backbone.pretrained", "false")
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    samples = list(zip(images, labels, strict=True))
    model = pv.tune(load_source(config.backbone), make_method(config), 3, head=config.train.head, samples=samples)
    optimizer = make_optimizer(model, config.train)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    prompts = {f"delta.{name}" for name, tensor in model.delta.named_parameters() if tensor.requires_grad}
    assert isinstance(model.delta, Prompts)
    assert changed == {"head.weight", "head.bias"} | prompts
    assert bool(prompts) != config.method.get("fixed", False)
