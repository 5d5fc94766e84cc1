"""Pages and scripts that stand for the code agree with it."""

import re
from pathlib import Path

import pytest
from scripts import docs, mutants

import promptvit
from promptvit.cli.main import VERBS


def test_the_table_of_methods_and_families_is_that_of_the_registry():
    assert docs.PAGE.read_text() == docs.methods_page(), "run `make docs`"


def test_the_readme_names_every_verb():
    readme = Path(__file__).parents[1] / "README.md"
    assert sorted(re.findall(r"^\| `(\w+)` \|", readme.read_text(), flags=re.M)) == sorted(VERBS)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.fault)
def test_a_mutant_still_has_its_place(mutant):
    text = (Path(promptvit.__file__).parent / mutant.file).read_text()
    assert text.count(mutant.before) == 1
    assert mutant.fault in mutants.PAGE.read_text()
