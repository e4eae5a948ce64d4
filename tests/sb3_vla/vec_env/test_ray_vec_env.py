"""What is particular to Ray; and, in one test as workers take seconds to start, what all vectorised environments do."""

import sys
import time
from functools import partial

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import PPOSelfBC, RayVecEnv
from sb3_vla.common.lost_episode import is_lost
from sb3_vla.vec_env.ray_cluster import check_object_store, connect, count_places
from sb3_vla_envs import ChunkedActionWrapper

from .common_checks import (
    AN_ERROR_BESIDE_WORK,
    ToyEnv,
    check_an_error_is_not_held_up_by_other_workers,
    check_attributes_and_methods_by_index,
    check_every_step,
    check_reset_drops_the_step_under_way,
    check_seeds_and_options_hold_for_one_reset,
)

# Workers can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Counting(gym.Env):
    """Observes how many steps it has taken; succeeds after 9, with reward 1."""

    observation_space = spaces.Box(0, 100, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, number=0, dies_at=None, dies_if_there_is=None):
        self.number, self.dies_at, self.dies_if_there_is = number, dies_at, dies_if_there_is

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.dies_if_there_is is not None and self.dies_if_there_is.exists():
            self.dies_if_there_is.unlink()
            sys.exit("killed")
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        if self.t == self.dies_at:
            sys.exit("killed")
        success = self.t >= 9
        return self._observe(), float(success), success, False, {"task": "count", "is_success": success}

    def _observe(self):
        return np.array([self.t, self.number], np.float32)


def chunked(number):
    return ChunkedActionWrapper(Counting(number), 2, gamma=0.9)


def nodes_of(env):
    """By worker."""
    return ray.get([worker.actor.__ray_call__.remote(node_id) for worker in env._workers])


def node_id(worker):
    return ray.get_runtime_context().get_node_id()


@pytest.fixture
def make(ray_cluster):
    made = []

    def make(*args, **kwargs):
        made.append(RayVecEnv(*args, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def wrapped(number):
    return OrderEnforcing(ToyEnv(number, "dict", fault=AN_ERROR_BESIDE_WORK.get(number), armed=False))


def test_it_is_like_other_vectorised_environments(make):
    env_fns = [partial(wrapped, number) for number in range(5)]
    env, dummy = make(env_fns, n_workers=2), DummyVecEnv(env_fns)
    check_every_step(env, dummy)
    for array in (*env.reset().values(), *env.step(np.zeros((5, 2)))[1:3]):
        assert array.flags.owndata and array.flags.writeable, "it belongs to the caller"
    check_seeds_and_options_hold_for_one_reset(env)
    check_attributes_and_methods_by_index(env)
    check_reset_drops_the_step_under_way(env, dummy)
    env.env_method("arm")
    check_an_error_is_not_held_up_by_other_workers(env)


class Large(Counting):
    """Observes the same many times."""

    def __init__(self, number, size):
        super().__init__(number)
        self.observation_space = spaces.Box(0, 100, (size, 2), np.float32)

    def _observe(self):
        return np.broadcast_to(super()._observe(), self.observation_space.shape)


@pytest.mark.parametrize(("size", "n_objects"), [(5_000, 2), (20_000, 1)], ids=["in two parts", "by the store"])
def test_observations_of_any_size_arrive(make, size, n_objects):
    env = make([partial(Large, number, size) for number in range(3)], n_workers=1)
    for t, observations in ((0, env.reset()), *((t, env.step(np.zeros((3, 2)))[0]) for t in (1, 2))):
        expected = [np.broadcast_to([t, number], (size, 2)) for number in range(3)]
        np.testing.assert_array_equal(observations, expected)
    assert 1 + len(env._workers[0].more) == n_objects


def test_a_lost_step_counts_as_none_a_lost_reset_costs_no_step_and_others_do_not_notice(make, tmp_path):
    order = tmp_path / "die"
    env = make([Counting, partial(Counting, 1, dies_at=3, dies_if_there_is=order)], n_workers=2)
    env.reset()
    actions = np.zeros((2, 2))
    for _ in range(2):
        env.step(actions)
    with pytest.warns(UserWarning, match=r"the worker of environments \[1\] was lost and is replaced"):
        observations, rewards, dones, infos = env.step(actions)
    np.testing.assert_array_equal(observations, [[3, 0], [0, 1]])
    assert rewards.tolist() == [0.0, 0.0] and dones.tolist() == [False, True]
    assert not is_lost(infos[0]) and is_lost(infos[1])
    assert infos[1]["TimeLimit.truncated"] and infos[1]["chunk_length"] == 0
    assert infos[1]["terminal_observation"].tolist() == [2, 1], "the last one that was seen"
    observations, _, dones, infos = env.step(actions)
    np.testing.assert_array_equal(observations, [[4, 0], [1, 1]])
    assert not dones.any() and not any(map(is_lost, infos)) and env.n_lost_workers == 1
    assert not any(worker.more for worker in env._workers), "what is small comes along with the reply"

    order.touch()
    with pytest.warns(UserWarning, match=r"the worker of environments \[1\] was lost and is replaced"):
        np.testing.assert_array_equal(env.reset(), [[0, 0], [0, 1]])
    observations, _, dones, infos = env.step(actions)
    np.testing.assert_array_equal(observations, [[1, 0], [1, 1]])
    assert not dones.any() and not any(map(is_lost, infos)) and env.n_lost_workers == 2


def test_a_worker_that_is_lost_before_its_first_step_is_not_replaced_for_ever(make):
    env = make([partial(Counting, dies_at=1)], n_workers=1)
    env.reset()
    with pytest.raises(RuntimeError, match=r"environments \[0\] was lost before its first step"):
        env.step(np.zeros((1, 2)))
    assert env.closed


def wait_for_end_of(actor):
    """A node's processes need a moment to see that it is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ray.get(actor.__ray_call__.remote(node_id), timeout=5)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return
        time.sleep(0.1)


class LosesNodes(BaseCallback):
    """Kills a node in mid-rollout, adds one later, and then kills a worker alone."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster = cluster
        self.lost, self.advantages = [], []

    def _on_step(self):
        env = self.training_env.unwrapped
        head = self.cluster.head_node.node_id
        if self.n_calls == 5:
            number, node = next((i, node) for i, node in enumerate(nodes_of(env)) if node != head)
            self.killed = env._workers[number].numbers
            self.cluster.remove_node(next(n for n in self.cluster.worker_nodes if n.node_id == node), allow_graceful=False)
            wait_for_end_of(env._workers[number].actor)
        if self.n_calls == 20:
            self.cluster.add_node(**self.cluster.node_arguments)
            other = next(worker for worker in env._workers if worker.numbers != self.killed)
            self.killed_later = other.numbers
            ray.kill(other.actor)
        for i, info in enumerate(self.locals["infos"]):
            if is_lost(info):
                self.lost.append((self.n_calls, i))
        return True

    def _on_rollout_end(self):
        self.advantages.append(self.model.rollout_buffer.advantages.copy())


def test_training_goes_on_when_nodes_go_and_come(make, ray_cluster, record_logs):
    env = make([partial(chunked, number) for number in range(6)], n_workers=3)
    assert len(set(nodes_of(env))) > 1
    model = PPOSelfBC("MlpPolicy", env, n_steps=16, batch_size=96, n_epochs=1, gamma=0.9, device="cpu", seed=0)
    logs = record_logs(model)
    callback = LosesNodes(ray_cluster)
    with pytest.warns(UserWarning, match="was lost and is replaced"):
        model.learn(192, callback=callback)
    assert model.num_timesteps == 192 and env.n_lost_workers == 2
    assert callback.lost == [*((6, i) for i in callback.killed), *((21, i) for i in callback.killed_later)]
    assert logs[-1]["rollout/lost_episodes"] == 4
    # No advantage is made of what nobody has seen
    for call, i in callback.lost:
        assert callback.advantages[(call - 1) // 16][(call - 1) % 16, i] == pytest.approx(0.0, abs=1e-6)
    episodes = model.replay_buffer.episodes["count"]
    assert episodes
    for episode in episodes:
        assert episode.n_steps == 9
        assert episode.observations["observation"][:, 0].tolist() == [0, 2, 4, 6, 8], "a whole episode"


def test_what_a_cluster_can_not_do_is_one_line_before_any_work(ray_cluster, monkeypatch):
    for call, error, text in (
        (lambda: check_object_store(10**12), ValueError, "start Ray with --object-store-memory=4000000000000"),
        (lambda: count_places({"CPU": 1, "unobtainium": 1}), ValueError, "no node of the Ray cluster has.*unobtainium"),
        (lambda: RayVecEnv([]), ValueError, "no environments"),
        (lambda: RayVecEnv([Counting], n_workers=0), ValueError, "n_workers must be at least 1"),
    ):
        with pytest.raises(error, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert count_places({"CPU": 1}) >= 4
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(
        ConnectionError, match=r"no Ray cluster answers at '127\.0\.0\.1:1': start one with `ray start --head`"
    ):
        connect("127.0.0.1:1")


def test_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-vla\[ray\]'"):
        RayVecEnv([Counting])
