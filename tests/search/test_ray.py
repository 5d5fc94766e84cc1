"""Workers on a real Ray cluster of two nodes, one of which is removed in the middle."""

import os
from collections import Counter

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

import pytest
from tests.search.test_study import PLANNED, executed, figures, run, toy

from promptvit.errors import ConfigError
from promptvit.search.study import Study
from promptvit.search.workers import make_pool

ray = pytest.importorskip("ray", reason="ray is not installed (the extra `ray`)")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's own sockets and processes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def cluster():
    """A head without room for workers, and two nodes with one place each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8}
    )
    cluster.nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_actors_on_two_nodes_give_what_one_process_gives(small_plan, cluster, tmp_path):
    """Real runs: the same points, the same numbers."""
    expected = run(small_plan, tmp_path / "whole")
    results = run(small_plan, tmp_path / "study", f"ray:{cluster.address}#2")
    assert figures(results) == figures(expected)


def test_a_node_that_is_removed_loses_its_running_trial_at_most(small_plan, cluster, tmp_path):
    log, removed = tmp_path / "log", []

    def remove(state):
        if state.done >= 4 and not removed:
            removed.append(cluster.nodes[0])
            cluster.remove_node(removed[0], allow_graceful=False)

    work = toy(log, seconds=0.2)
    results = run(small_plan, tmp_path / "study", f"ray:{cluster.address}#2", work=work, follow=remove)
    assert removed
    assert figures(results) == figures(run(small_plan, tmp_path / "whole", work=toy(tmp_path / "log2")))
    counts = executed(log)
    assert len(counts) == PLANNED
    assert sum(counts.values()) <= PLANNED + 1
    assert Counter(counts.values())[1] >= PLANNED - 1


def test_a_cluster_that_is_not_there_is_named(small_plan, tmp_path):
    with pytest.raises(ConfigError, match="no Ray cluster at"), Study(small_plan, tmp_path / "study"):
        make_pool("ray:127.0.0.1:1")
