import io
import zipfile

import pytest

from sb3_vla import PPOSelfBC

LOADING = {
    "load": lambda path, model: PPOSelfBC.load(path),
    "load with other policy_kwargs": lambda path, model: PPOSelfBC.load(path, policy_kwargs={"frozen": ()}),
    "set_parameters": lambda path, model: model.set_parameters(str(path)),
}


@pytest.mark.parametrize("way", LOADING)
def test_a_file_that_is_not_whole_is_named_with_what_to_do(way, make_model, tmp_path):
    model, path = make_model(), tmp_path / "model.zip"
    model.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # of the weights
    for content in (b"", b"not a zip file", whole[:-1], whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.zip' is truncated, damaged or no model.*: take another copy of it"):
            LOADING[way](path, model)


def test_another_zip_file_is_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("thesis.tex", "all of it")
    with pytest.raises(ValueError, match="no model's zip file"):
        PPOSelfBC.load(tmp_path / "model.zip", policy_kwargs={"frozen": ()})


def test_the_ending_may_be_left_out_and_a_file_be_open(make_model, tmp_path):
    model, file = make_model(), io.BytesIO()
    model.num_timesteps = 7
    model.save(str(tmp_path / "new" / "model"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.zip"]
    model.save(file)
    file.seek(0)
    for source in (str(tmp_path / "new" / "model"), tmp_path / "new" / "model.zip", file, file):
        assert PPOSelfBC.load(source).num_timesteps == 7
