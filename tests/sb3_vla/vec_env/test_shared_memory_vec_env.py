import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_vla import PPOSelfBC, SharedMemoryVecEnv
from sb3_vla.vec_env.shared_memory_vec_env import balance
from sb3_vla.vec_env.shared_memory_worker import StepArrays
from sb3_vla.vec_env.worker_vec_env import WorkerTraceback

from .common_checks import (
    AN_ERROR_BESIDE_WORK,
    SPACES,
    ToyEnv,
    assert_same,
    check_an_error_is_not_held_up_by_other_workers,
    check_attributes_and_methods_by_index,
    check_every_step,
    check_reset_drops_the_step_under_way,
    check_seeds_and_options_hold_for_one_reset,
    fail,
    toy_env_fns,
)

# Workers can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def make():
    made = []

    def make(env_fns, *args, **kwargs):
        made.append(SharedMemoryVecEnv(env_fns, *args, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()
        assert not any(process.is_alive() for process in env.processes)


IN_PROCESSES = [*zip(SPACES, [1, 2, 5, 2, 1, 2, 2, 2], strict=True), ("dict", 1), ("dict", 5), ("tuple", 4)]


@pytest.mark.parametrize(("space", "n_workers"), IN_PROCESSES)
def test_every_step_is_that_of_dummy_vec_env(make, space, n_workers):
    env_fns = toy_env_fns(space=space)
    check_every_step(make(env_fns, n_workers), DummyVecEnv(env_fns))


@pytest.mark.parametrize("space", SPACES)
def test_packed_steps_are_unpacked_elsewhere(space):
    here, there = (StepArrays(3, ToyEnv(space=space).observation_space) for _ in range(2))
    rng = np.random.default_rng(0)
    for array in here.arrays:
        array[...] = rng.integers(0, 2, array.shape)
    there.unpack([0, 2], here.pack([0, 2]))
    for packed, unpacked in zip(here.arrays, there.arrays, strict=True):
        assert_same(unpacked[[0, 2]], packed[[0, 2]])
        assert not unpacked[1].any(), "nobody has written this one"


def test_seeds_and_options_hold_for_one_reset(make):
    check_seeds_and_options_hold_for_one_reset(make(toy_env_fns(3, space="dict"), 2))


def test_discrete_actions_and_lists_of_actions_arrive(make):
    env = make(toy_env_fns(3, action_space=spaces.Discrete(5)), 2)
    env.reset()
    for actions in (np.array([4, 0, 2]), [4, 0, 2]):
        assert [info["action"] for info in env.step(actions)[3]] == [4, 0, 2]
    with pytest.raises(ValueError, match="2 actions for 3 environments"):
        env.step(np.zeros(2))


def test_what_is_returned_belongs_to_the_caller(make):
    env = make(toy_env_fns(space="dict"), 2)
    first = env.reset()
    kept = {key: value.copy() for key, value in first.items()}
    second = env.step(np.zeros((5, 2)))
    for array in (*first.values(), *second[0].values(), *second[1:3]):
        assert array.flags.owndata and array.flags.writeable
    rewards = second[1].copy()
    env.step(np.ones((5, 2)))
    env.close()
    assert_same(first, kept)
    assert_same(second[1], rewards)


def test_attributes_and_methods_by_index(make):
    env_fns = [partial(OrderEnforcing, env_fn()) for env_fn in toy_env_fns(4)]
    check_attributes_and_methods_by_index(make(env_fns, 2))


def test_renders_like_dummy_vec_env(make):
    env_fns = toy_env_fns(4, render_mode="rgb_array")
    shared, dummy = make(env_fns, 2), DummyVecEnv(env_fns)
    assert shared.render_mode == "rgb_array" and [image[0, 0, 0] for image in shared.get_images()] == [0, 1, 2, 3]
    np.testing.assert_array_equal(shared.render(), dummy.render())
    texts = make(toy_env_fns(2, render_mode="ansi"), 1)
    with pytest.warns(UserWarning, match="ansi"):
        assert texts.get_images() == [None, None]


@pytest.mark.parametrize("algorithm", [PPO, PPOSelfBC, SAC])
def test_algorithms_learn_the_same_as_with_dummy_vec_env(make, algorithm):
    env_fns = [partial(_pendulum, number) for number in range(3)]
    settings = {"learning_starts": 30} if algorithm is SAC else {"n_steps": 16, "batch_size": 24, "n_epochs": 2}
    parameters = []
    for env in (make(env_fns, 2), DummyVecEnv(env_fns)):
        model = algorithm("MlpPolicy", VecNormalize(env), seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **settings)
        model.learn(100)
        parameters.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert th.equal(*parameters)


def _pendulum(number):
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=5 + number))


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def faulty_env_fns(where, what=fail, n=4, at=2):
    return [partial(ToyEnv, number, fault=(where, what) if number == at else None) for number in range(n)]


@pytest.mark.parametrize("where", ["build", "reset", "step", "method"])
def test_an_environments_error_is_raised_here_and_everything_closed(make, where):
    env = None
    children = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match=r"^the spring broke$") as caught:
        env = make(faulty_env_fns(where), 2)
        env.reset()
        env.step(np.zeros((4, 2)))
        env.env_method("happens", "method")
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerTraceback) and "environment 2" in str(cause) and "in fail" in str(cause)
    assert set(multiprocessing.active_children()) <= children
    assert (env is None) == (where == "build")
    if env is not None:
        assert env.closed and len(env.processes) == 2
        for call in (env.reset, partial(env.get_attr, "number")):
            with pytest.raises(RuntimeError, match="closed"):
                call()


def test_an_error_is_not_held_up_by_other_workers(make):
    env_fns = [partial(ToyEnv, number, fault=AN_ERROR_BESIDE_WORK.get(number)) for number in range(4)]
    check_an_error_is_not_held_up_by_other_workers(make(env_fns, 2))


def test_an_error_that_cannot_be_pickled_keeps_its_text(make):
    env = make(faulty_env_fns("step", partial(fail, Unpicklable, "rust", "dust")), 2)
    env.reset()
    with pytest.raises(RuntimeError, match="Unpicklable: rust and dust"):
        env.step(np.zeros((4, 2)))


def test_observations_that_do_not_fit_are_named(make):
    narrow = spaces.Dict({**SPACES["dict"].spaces, "state": spaces.Box(-1, 1, (1,))})
    fewer = spaces.Dict({"image": SPACES["dict"]["image"]})
    for space, text in ((narrow, r"'state' has shape \(1,\).*says \(3,\)"), (fewer, "'number' is missing")):
        env = make([partial(ToyEnv, space="dict"), partial(ToyEnv, space=space)], 1)
        with pytest.raises(ValueError, match=text) as caught:
            env.reset()
        assert "environment 1" in str(caught.value.__cause__)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("where", ["build", "step"])
def test_a_killed_worker_is_noticed_at_once_even_while_others_work(make, where):
    env_fns = faulty_env_fns(where, die)
    env_fns[1] = partial(ToyEnv, 1, fault=("step", partial(time.sleep, 60)))
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"environments \[0, 2\] was killed by signal 9 \(Killed\)"):
        env = make(env_fns, 2)
        env.reset()
        env.step(np.zeros((4, 2)))
    assert time.monotonic() - start < 15


def test_a_worker_killed_between_steps_and_one_that_exits(make):
    env = make(toy_env_fns(4), 2)
    os.kill(env.processes[1].pid, signal.SIGKILL)
    env.processes[1].join(5)
    with pytest.raises(RuntimeError, match=r"environments \[1, 3\] was killed by signal 9"):
        env.reset()
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        make(faulty_env_fns("build", partial(sys.exit, 3)), 2)


def test_can_be_closed_in_the_middle_of_a_step_and_again(make, tmp_path):
    class LeavesMark(ToyEnv):
        def close(self):
            (tmp_path / str(self.number)).touch()

    env = make([partial(LeavesMark, number, fault=("step", partial(time.sleep, 0.2))) for number in range(3)], 2)
    env.reset()
    env.step_async(np.zeros((3, 2)))
    env.close()
    env.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert [process.exitcode for process in env.processes] == [0, 0]


def test_reset_drops_the_step_under_way(make):
    env_fns = toy_env_fns(3)
    check_reset_drops_the_step_under_way(make(env_fns, 2), DummyVecEnv(env_fns))


class OldStyleEnv(ToyEnv):
    """Uses global random numbers."""

    def __init__(self, number):
        super().__init__(number)
        np.random.seed(number)
        random.seed(number)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.seed(seed)
            random.seed(seed)
        return self._observe(), {}

    def step(self, action):
        return self._observe(), np.random.normal(), random.random() < 0.2, False, {}

    def _observe(self):
        return np.array([np.random.random(), random.random(), np.random.standard_normal()], np.float32)


@pytest.mark.parametrize("seed", [None, 5])
def test_neither_workers_nor_probing_change_results_of_environments_with_global_random_numbers(make, seed):
    def play(*args):
        env = make([partial(OldStyleEnv, number) for number in range(4)], *args)
        if seed is not None:
            env.seed(seed)
        return [env.reset(), *(env.step(np.zeros((4, 2)))[0] for _ in range(20))]

    one = play(1)
    assert_same(one, play(2))
    assert_same(one, play(4))
    assert_same(one, play(2, None, 3))
    assert len(np.unique(one[0])) == 12


def test_balance_gives_the_most_costly_first_to_who_has_least():
    # 9 | 7; 7 + 5; 12 > 9 so 9 + 4 | 12 + 1
    assert balance([1, 9, 4, 7, 5], 2) == [1, 0, 0, 1, 1]
    assert balance([1.0] * 5, 2) == [0, 1, 0, 1, 0], "equal ones in turn"
    assert balance([0.0] * 3, 3) == [0, 1, 2]
    assert balance([100, 1, 1, 1], 2) == [0, 1, 1, 0], "nobody gets more than two of four"


def test_measured_cost_decides_who_shares_a_worker(make):
    slow = partial(ToyEnv, fault=("step", partial(time.sleep, 0.02)))
    env_fns = [slow, ToyEnv, slow, ToyEnv]
    pids = make(env_fns, 2).env_method("pid")
    assert pids[0] == pids[2] != pids[1] == pids[3], "in turn"
    pids = make(env_fns, 2, probe_steps=5).env_method("pid")
    assert pids[0] != pids[2] and pids[1] != pids[3]


def test_workers_use_one_thread_each_and_leave_ctrl_c_to_the_parent(make, monkeypatch):
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    env = make(toy_env_fns(2))
    assert env.env_method("settings") == [("0", 1, True)] * 2
    assert len(env.processes) == min(2, len(os.sched_getaffinity(0)))


def test_processes_that_train_one_model_share_the_cpus(make, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert len(make(toy_env_fns(4)).processes) == 2


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="no environments"):
        SharedMemoryVecEnv([])
    with pytest.raises(ValueError, match="n_workers must be at least 1, got 0"):
        SharedMemoryVecEnv(toy_env_fns(2), n_workers=0)


SCRIPT = """
import os
import signal
import sys
import gymnasium as gym
import numpy as np
from sb3_vla import SharedMemoryVecEnv

if __name__ == "__main__":
    envs = []
    for method, n_workers in (("fork", 2), ("spawn", 1)):
        envs.append(SharedMemoryVecEnv([lambda: gym.make("CartPole-v1")] * 3, n_workers, start_method=method))
        envs[-1].reset()
        assert envs[-1].step(np.ones(3, int))[0].shape == (3, 4)
    assert "transformers" not in sys.modules, "nothing here has a backbone"
    print(*[process.pid for env in envs for process in env.processes], flush=True)
"""


def test_a_script_that_does_not_close_ends_in_silence_and_leaves_nothing(tmp_path, no_memory_left):
    result = run_script(tmp_path / "script.py", SCRIPT)
    assert (result.returncode, result.stderr) == (0, ""), "no complaint of the tracker of shared memory either"
    assert_left_nothing(result)


def test_workers_end_when_the_parent_is_killed(tmp_path, no_memory_left):
    # The forked ones inherit this side of each other's pipes
    result = run_script(tmp_path / "script.py", f"{SCRIPT}    os.kill(os.getpid(), signal.SIGKILL)\n")
    assert result.returncode == -signal.SIGKILL
    assert_left_nothing(result)


def run_script(path, text):
    path.write_text(text)
    return subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)


def assert_left_nothing(result):
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 3
    assert_have_ended(pids)


WITHOUT_GUARD = """
import gymnasium as gym
from sb3_vla.vec_env import SharedMemoryVecEnv

SharedMemoryVecEnv([lambda: gym.make("CartPole-v1")] * 2, n_workers=2, start_method="{method}")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_without_a_main_guard_is_told_so(method, tmp_path):
    result = run_script(tmp_path / "script.py", WITHOUT_GUARD.format(method=method))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: The worker process of environments [") and "ended with exit code 1" in last
    assert "must stand in an `if __name__ == '__main__':` block" in last


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), BrokenPipeError("Broken pipe")])
def test_a_worker_that_cannot_be_started_is_named_and_the_others_ended(error, monkeypatch):
    started = []
    start = multiprocessing.process.BaseProcess.start

    def start_one_only(process):
        if started:
            raise error
        start(process)
        started.append(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_one_only)
    with pytest.raises(RuntimeError, match=rf"Worker 1 of 2 could not be started .{type(error).__name__}: {error}.*__main__"):
        SharedMemoryVecEnv(toy_env_fns(2), n_workers=2)
    assert not started[0].is_alive()


def assert_have_ended(pids):
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Workers that do not answer


class Hanging(gym.Env):
    """One of its steps takes an hour."""

    observation_space = action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, at=None):
        self.at = at

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n += 1
        if self.n == self.at:
            self.a_simulator_that_hangs()
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def a_simulator_that_hangs(self):
        time.sleep(3600)


def _steps(env, n):
    for _ in range(n):
        env.step(np.zeros((env.num_envs, 1), np.float32))


def test_a_simulator_that_hangs_is_named_with_its_stack(make):
    env = make([Hanging, partial(Hanging, at=3)], n_workers=2)
    env.reset()
    env.timeout = 1.0
    _steps(env, 2)
    with pytest.raises(TimeoutError, match=r"Environments \[1\] in process \d+ have not answered for 1 seconds") as caught:
        _steps(env, 1)
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerTraceback) and "in a_simulator_that_hangs" in str(cause)
    assert env.closed and not any(process.is_alive() for process in env.processes)


def test_a_worker_that_was_stopped_is_noticed(make):
    env = make([Hanging, Hanging], n_workers=2)
    env.reset()
    env.timeout = 1.0
    os.kill(env.processes[0].pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=rf"Environments \[0\] in process {env.processes[0].pid} have not answered"):
        _steps(env, 1)
    assert not any(process.is_alive() for process in env.processes)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_is_a_time(timeout):
    with pytest.raises(ValueError, match=f"timeout must be (above 0|finite), got {timeout}"):
        SharedMemoryVecEnv([Hanging], timeout=timeout)
