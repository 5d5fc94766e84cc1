import numpy as np

from promptvit.data.digits import read_digits


def test_digits_are_a_fixed_task_in_three_parts():
    task, again = read_digits(), read_digits()
    assert task.test is not None
    splits = (task.train, task.val, task.test)
    assert [len(split) for split in splits] == [1078, 360, 359]
    assert task.classes == tuple("0123456789")
    assert np.array_equal(task.train.images, again.train.images)
    for split in splits:
        assert isinstance(split.images, np.ndarray)
        assert split.images.shape[1:] == (8, 8, 3)
        assert (split.images.min(), split.images.max()) == (0, 255)
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert np.all(abs(shares - 0.1) < 0.02)
