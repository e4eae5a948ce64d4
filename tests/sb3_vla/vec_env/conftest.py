"""What tests of vectorised environments share: a Ray cluster of three nodes on this machine, and a look at shared memory."""

import os
import sys
import time
from pathlib import Path

import pytest

pytest.register_assert_rewrite(f"{__package__}.common_checks")


@pytest.fixture
def no_memory_left():
    """Shared memory that the test makes is gone soon after it; that of tests in other processes comes and goes, too."""
    before = _shared_memory()
    yield
    left = _shared_memory() - before
    deadline = time.monotonic() + 20
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= _shared_memory()
    assert not left


def _shared_memory():
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


@pytest.fixture(scope="session")
def ray_cluster():
    """It starts with the first test that asks for it, and is gone with the last test of all."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        # Workers find the same packages as these tests
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        node = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
        try:
            cluster.node_arguments = node
            for name in ("second", "third"):
                cluster.add_node(**node, resources={name: 1})
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
