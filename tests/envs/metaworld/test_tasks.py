from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

from sb3_vla_envs import MT10, MT50
from sb3_vla_envs.metaworld.tasks import BENCHMARKS


def test_lists_are_those_of_metaworld():
    assert MT10 == tuple(MT10_V3)
    assert set(MT50) == set(ALL_V3_ENVIRONMENTS)
    assert len(MT50) == 50


def test_tiers_of_mt50_hold_each_task_once():
    tiers = [BENCHMARKS[f"MT50-{tier}"] for tier in ("easy", "medium", "hard", "very-hard")]
    assert [len(tier) for tier in tiers] == [28, 11, 6, 5]
    assert sorted(task for tier in tiers for task in tier) == sorted(MT50)
