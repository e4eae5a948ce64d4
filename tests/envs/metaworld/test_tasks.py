from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

from sb3_vla_envs import MT10, MT50


def test_lists_are_those_of_metaworld():
    assert MT10 == tuple(MT10_V3)
    assert set(MT50) == set(ALL_V3_ENVIRONMENTS)
    assert len(MT50) == 50
