"""A backbone of one's own, in one file."""

import torch as th


def test_it_is_rebuilt_from_a_saved_model(load_example, small_run, capsys):
    example = load_example("own_backbone")
    loaded = example.main(**small_run)
    assert isinstance(loaded.policy.backbone, example.ConvFiLM)
    assert loaded.policy.backbone.constructor_kwargs() == {"n_cameras": 2, "width": 24}
    assert capsys.readouterr().out.count("mean") == 2


def test_it_listens_to_the_instruction(load_example):
    th.manual_seed(0)
    backbone = load_example("own_backbone").ConvFiLM(state_dim=4, n_cameras=1)
    tokens = backbone.encode_images({"image": th.randint(0, 256, (1, 3, 64, 64), dtype=th.uint8)}).expand(3, -1, -1, -1)
    action = backbone(tokens, ["open the window", "close the window", "open the window"], th.zeros(3, 4)).action
    assert th.equal(action[0], action[2]) and not th.allclose(action[0], action[1])
