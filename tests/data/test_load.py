import pytest
from PIL import Image

from promptvit.data.config import DataConfig
from promptvit.data.load import load_task
from promptvit.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (2, 2)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_digits_are_the_default():
    assert load_task(DataConfig()).name == "digits"


def test_a_folder_is_read_with_the_configs_holdout(root):
    task = load_task(DataConfig(source=str(root), validation_fraction=0.4, seed=1))
    assert (len(task.train), len(task.val)) == (6, 4)
    assert task.val.images != load_task(DataConfig(source=str(root), validation_fraction=0.4, seed=2)).val.images


def test_lists_win_over_class_folders(root):
    (root / "train.txt").write_text("a/0.png 0\na/1.png 1\n")
    (root / "val.txt").write_text("b/0.png 1\n")
    task = load_task(DataConfig(source=str(root)))
    assert task.classes == ("0", "1")


def test_training_on_both_leaves_the_validation_images_where_they_are(root):
    apart = load_task(DataConfig(source=str(root)))
    both = load_task(DataConfig(source=str(root), train_on="train+val"))
    assert both.train.images == apart.train.images + apart.val.images
    assert both.val.images == apart.val.images


def test_a_share_of_the_training_images_leaves_the_others_where_they_are(root):
    whole, share = (load_task(DataConfig(source=str(root), train_share=share)) for share in (1.0, 0.5))
    assert (len(whole.train), len(share.train)) == (8, 4)
    assert set(share.train.images) < set(whole.train.images)
    assert share.val.images == whole.val.images
    both = load_task(DataConfig(source=str(root), train_share=0.5, train_on="train+val"))
    assert len(both.train) == 4  # of the five images of either class, two
    assert load_task(DataConfig(source=str(root), train_share=0.5, seed=3)).train.images != share.train.images


def test_fewer_images_make_training_and_validation_smaller(root):
    whole, few = (load_task(DataConfig(source=str(root), images=images)) for images in (10, 5))
    assert (len(whole.train), len(whole.val)) == (8, 2)
    assert (len(few.train), len(few.val)) == (4, 2)  # one validation image of each class at least
    assert set(few.train.images) < set(whole.train.images)
    other = load_task(DataConfig(source=str(root), images=5, seed=3))
    assert other.train.images != few.train.images
    with pytest.raises(DataError, match=r"images=11 of .*which has 10.*expected 4 \(two for each class\) to 10"):
        load_task(DataConfig(source=str(root), images=11))


def test_shots_are_images_of_each_class_to_train_on_and_to_validate_by(root):
    one = load_task(DataConfig(source=str(root), shots=1))
    assert one.train.labels.tolist() == one.val.labels.tolist() == [0, 1]
    two = load_task(DataConfig(source=str(root), shots=2))
    assert len(two.train) == 4
    assert set(one.train.images) < set(two.train.images)
    assert len(load_task(DataConfig(source=str(root), shots=1, train_on="train+val")).train) == 4


def test_an_unknown_source_says_what_is_accepted(tmp_path):
    with pytest.raises(DataError, match=r"'digit' is neither.*train/CLASS/IMAGE.*train800.txt.*Did you mean digits\?"):
        load_task(DataConfig(source="digit"))
    with pytest.raises(DataError, match="Check the path"):
        load_task(DataConfig(source=str(tmp_path / "x")))


def test_a_folder_of_tasks_is_not_taken_for_a_task(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text("0.png 0\n")
    with pytest.raises(DataError, match=r"holds 2 tasks: one, two.*Give .*one, for example"):
        load_task(DataConfig(source=str(tmp_path)))
