import os
import sys
from types import SimpleNamespace

import cloudpickle
import pytest
import torch as th

from sb3_vla.common.launch import LostRank, launched_as
from sb3_vla.common.ranks import JoinedRanks, RankMail, Ranks, check_alike, join_ranks

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def talk():
    ranks = join_ranks("cpu")
    assert isinstance(ranks, JoinedRanks) and join_ranks("cpu").size == 2
    own = ranks.rank + 1
    tensors = [th.full((2, 3), own), th.full((), 10.0 * own), th.tensor([own], dtype=th.float64), th.empty(0)]
    ranks.all_reduce_(tensors)
    weights = [th.full((2, 3), own).T, th.tensor(own, dtype=th.bfloat16), th.tensor([own == 1]), th.empty(0), th.tensor([own])]
    ranks.broadcast_(weights)
    received = []
    mail = RankMail(ranks, received.append)
    mail.send(f"from {ranks.rank}")
    before = list(received)
    mail.exchange()
    mail.exchange()
    return {
        "rank": (ranks.rank, ranks.size, ranks.is_first, launched_as()),
        "all_gather_object": ranks.all_gather_object({"own": own}),
        "broadcast_object": ranks.broadcast_object(f"I am {own}"),
        "all": (ranks.all(True), ranks.all(own == 1), ranks.all(False)),
        "all_reduce": ranks.all_reduce(th.tensor([own, 5])).tolist(),
        "all_reduce_": [tensor.tolist() for tensor in tensors],
        "broadcast_": [weight.tolist() for weight in weights],
        "all_gather": ranks.all_gather(th.tensor([[own, own]])).tolist(),
        "share": float(ranks.share(th.tensor(own))),
        "mail": (before, received),
    }


def disagree(what):
    ranks = join_ranks("cpu")
    check_alike(ranks, "tools", {"hammer": 1, "saw": "new"})
    check_alike(ranks, "tools", {"hammer": 1, "saw": ranks.rank} if what == "value" else {"hammer"[: 6 - ranks.rank]: 1})


def vanish():
    ranks = join_ranks("cpu")
    ranks.all_gather_object(0)
    if ranks.rank == 1:
        os._exit(1)
    ranks.all_reduce(th.zeros(1))


def test_what_ranks_tell_each_other(start_ranks):
    first, second = start_ranks(talk, 2).results()
    assert first.pop("rank") == (0, 2, True, (0, 2)) and second.pop("rank") == (1, 2, False, (1, 2))
    assert (first.pop("share"), second.pop("share")) == pytest.approx((1 / 3, 2 / 3))
    assert first == second
    assert first["all_gather_object"] == [{"own": 1}, {"own": 2}]
    assert first["broadcast_object"] == "I am 1"
    assert first["all"] == (True, False, False)
    assert first["all_reduce"] == [3, 10]
    assert first["all_reduce_"] == [[[3, 3, 3]] * 2, 30.0, [3.0], []]
    assert first["broadcast_"] == [[[1, 1]] * 3, 1.0, [True], [], [1]]
    assert first["all_gather"] == [[1, 1], [2, 2]]
    assert first["mail"] == ([], ["from 0", "from 1"])


@pytest.mark.parametrize(
    ("what", "text"),
    [("value", "saw is 0 on rank 0 and 1 on rank 1"), ("name", "hammer is 1 on rank 0 and nothing on rank 1")],
)
def test_what_differs_between_ranks_is_named_on_all(start_ranks, what, text):
    for error in start_ranks(disagree, 2, what).results():
        assert isinstance(error, ValueError) and f"the ranks differ in tools: {text}" in str(error) and "\n" not in str(error)


def test_a_rank_that_ends_is_noticed_at_once(start_ranks):
    error, nothing = start_ranks(vanish, 2).results(timeout=30)
    assert nothing is None
    assert isinstance(error, LostRank) and "another rank has ended" in str(error) and "--resume" in str(error)


def test_a_process_alone_asks_nobody(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert launched_as() == (0, 1)
    ranks = join_ranks("cpu")
    assert type(ranks) is Ranks and ranks.is_first and ranks.size == 1
    tensor = th.tensor([1.0, 2.0])
    ranks.all_reduce_([tensor])
    ranks.broadcast_([tensor])
    assert ranks.all_reduce(tensor) is tensor and ranks.all_gather(tensor) is tensor and ranks.share(tensor.sum()) == 1.0
    assert ranks.all_gather_object(3) == [3] and ranks.broadcast_object(3) == 3 and ranks.all(True) and not ranks.all(False)
    received = []
    RankMail(ranks, received.append).send(7)
    assert received == [7]


def test_another_processs_gpu_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: SimpleNamespace(device=th.device("cuda:1")))
    with pytest.raises(ValueError, match="device is 'cuda:0', but of several processes this one has 'cuda:1': say 'cuda' or"):
        join_ranks("cuda:0")


def test_a_missing_accelerate_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-vla\[distributed\]'"):
        join_ranks("cpu")
