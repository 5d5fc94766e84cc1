import pytest

from promptvit.data.catalog import BENCHMARKS, FGVC, VTAB, benchmark_of, find_task


def test_the_tasks_are_those_of_the_benchmarks():
    groups = [task.group for task in VTAB]
    assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    assert groups == sorted(groups)
    assert {(task.train, task.val) for task in VTAB} == {(800, 200)}
    assert [task.classes for task in FGVC] == [200, 555, 102, 120, 196]
    assert [sum(task.counts.values()) for task in FGVC] == [11_788, 48_562, 8_189, 20_580, 16_185]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cifar100", "cifar"),
        ("CIFAR-100", "cifar"),
        ("Natural/CIFAR100", "cifar"),
        ("vtab-cifar(num_classes=100)", "cifar"),
        ("caltech", "caltech101"),
        ("flowers102", "oxford_flowers102"),
        ("oxford_pet", "oxford_iiit_pet"),
        ("pet", "oxford_iiit_pet"),
        ("Pets", "oxford_iiit_pet"),
        ("sun", "sun397"),
        ("camelyon", "patch_camelyon"),
        ("PCAM", "patch_camelyon"),
        ("resisc", "resisc45"),
        ("retinopathy", "diabetic_retinopathy"),
        ('vtab-diabetic_retinopathy(config="btgraham-300")', "diabetic_retinopathy"),
        ('vtab-clevr(task="count_all")', "clevr_count"),
        ('vtab-clevr(task="closest_object_distance")', "clevr_dist"),
        ("Structured/Clevr-Distance", "clevr_dist"),
        ("kitti_dist", "kitti"),
        ("dsprites_location", "dsprites_loc"),
        ("dsprites_position", "dsprites_loc"),
        ("dSpr-Ori", "dsprites_ori"),
        ("dsprites_orientation", "dsprites_ori"),
        ("smallnorb_azimuth", "smallnorb_azi"),
        ('vtab-smallnorb(predicted_attribute="label_elevation")', "smallnorb_ele"),
        ("sNORB-Azim", "smallnorb_azi"),
    ],
)
def test_names_in_use_are_one_task(alias, name):
    found = find_task(alias, "vtab-1k")
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("name", ["cifar10", "clevr", "naturalcifar", "vtab", ""])
def test_other_names_are_none(name):
    assert find_task(name, "vtab-1k") is None


def test_every_name_finds_its_task():
    for benchmark, tasks in BENCHMARKS.items():
        for task in tasks:
            for alias in (task.name, *task.aliases, f"vtab-{task.name}", f"{task.group.title()}/{task.name.upper()}"):
                assert find_task(alias, benchmark) is task


def test_one_name_may_mean_two_sets():
    vtab, fgvc = (find_task("flowers102", benchmark) for benchmark in BENCHMARKS)
    assert vtab is not None
    assert fgvc is not None
    assert (vtab.name, fgvc.name) == ("oxford_flowers102", "oxford_flowers")


def test_a_folders_names_say_which_benchmark():
    assert benchmark_of(["CUB_200_2011", "flowers102", "OxfordFlowers", "mine"]) == "fgvc"
    assert benchmark_of(["flowers102", "cifar100"]) == "vtab-1k"
    assert benchmark_of(["mine", "cifar10", "pets"]) is None
    assert benchmark_of([]) is None
