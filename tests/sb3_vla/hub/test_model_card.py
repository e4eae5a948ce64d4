"""Cards as the Hub reads them: metadata parsed back, tables worked out by hand, code run as a reader would."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sb3_vla import ConstantWeight, EvaluationResult, PPOSelfBC, evaluate_on_tasks, make_vla_vec_env, save_for_hub
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla_envs import Camera

TASKS = ["drawer-close-v3", "window-open-v3"]
SETTINGS = {
    "suite": "metaworld",
    **{"tasks": TASKS, "n_goals": 4, "goal_split": "test", "goal_seed": 5, "seed": 7, "n_envs": 2, "deterministic": True},
    **{"horizon": 120, "chunk_size": 3, "gamma": 0.9, "privileged": False, "n_action_steps": None},
}


def _result(*steps: list[int | None], **settings: Any) -> EvaluationResult:
    """Steps to success of each goal, a list for each task."""
    episodes = [
        EpisodeRecord(task, goal, n is not None, n, n or 120, float(n is not None))
        for task, of_task in zip(TASKS, steps, strict=False)
        for goal, n in enumerate(of_task)
    ]
    return EvaluationResult(episodes, {**SETTINGS, **settings}, {"torch": "2.0"})


RESULT = _result([20, 40, None, None], [10, 10, 10, 20])


@pytest.fixture
def card(tmp_path, make_model):
    """Writes a folder and parses its card."""

    def card(model: Any = None, **kwargs: Any) -> ModelCard:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save_for_hub(make_model() if model is None else model, folder, "ann/close-drawers", **kwargs)
        # Whatever the card shows or links to is there
        card = ModelCard.load(folder / "README.md")
        for name in re.findall(r"\]\(((?!http)[^)]+)\)|^- `([^`]+)`:", card.text, re.M):
            assert (folder / "".join(name)).is_file(), name
        return card

    return card


def _blocks(card: ModelCard, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card.text, re.S)


def _rows(card: ModelCard) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines() if line.startswith("|")]


def test_metadata_that_the_hub_searches_by(card):
    data = card(result=RESULT, metadata={"license": "mit", "base_model": "HuggingFaceTB/SmolVLM-256M-Instruct"}).data
    assert data.library_name == "stable-baselines3" and data.pipeline_tag == "robotics"
    wanted = {"reinforcement-learning", "robotics", "vision-language-action", "metaworld", "sb3-vla", "ppo-self-bc"}
    assert wanted <= set(data.tags)
    assert data.license == "mit" and data.base_model == "HuggingFaceTB/SmolVLM-256M-Instruct"


def test_model_index_has_success_and_steps_of_all_tasks_and_of_each(card):
    data = card(result=RESULT).data
    assert data.model_name == "close-drawers"
    values = {(each.dataset_config, each.metric_type): each.metric_value for each in data.eval_results}
    assert values == {
        (None, "success_rate"): 0.75,
        # The mean of the tasks' 30 and 12.5
        (None, "steps_to_success"): 21.25,
        ("drawer-close-v3", "success_rate"): 0.5,
        ("drawer-close-v3", "steps_to_success"): 30,
        ("window-open-v3", "success_rate"): 1.0,
        ("window-open-v3", "steps_to_success"): 12.5,
    }
    assert {each.dataset_split for each in data.eval_results} == {"test"}


def test_table_has_intervals_steps_and_episodes(card):
    loaded = card(result=RESULT)
    # Wilson's intervals of 2 of 4, 4 of 4 and 6 of 8
    assert _rows(loaded)[2:] == [
        ["drawer-close-v3", "0.50 (0.15-0.85)", "30.0", "4"],
        ["window-open-v3", "1.00 (0.51-1.00)", "12.5", "4"],
        ["**mean**", "0.75 (0.41-0.93)", "21.2", "8"],
    ]
    for words in ("4 goals of each task", "`test` split", "goal seed 5", "horizon 120", ", seed 7", "deterministic actions"):
        assert words in loaded.text, words
    assert "actions executed of each chunk" not in loaded.text
    assert "sampled actions" in card(result=_result([1], [1], deterministic=False)).text


def test_table_shows_the_model_before_post_training_beside_it(card):
    # Another discount, as of SFT before a post-training with its own, is no other protocol
    baseline = _result([None] * 4, [50, 50, 50, 90], gamma=0.99, n_envs=7)
    rows = _rows(card(result=RESULT, baseline=baseline))
    assert "before post-training" in rows[0][1] and "this model" in rows[0][4]
    assert rows[2] == ["drawer-close-v3", "0.00 (0.00-0.49)", "-", "4", "0.50 (0.15-0.85)", "30.0", "4"]
    assert rows[4][2] == "60.0" and rows[4][5] == "21.2"


def test_steps_to_a_success_that_never_was(card):
    loaded = card(result=_result([None, None]))
    assert [(each.metric_type, each.metric_value) for each in loaded.data.eval_results] == [("success_rate", 0)]
    assert _rows(loaded)[2][2] == "-"


def test_without_an_evaluation_nothing_is_claimed(card):
    loaded = card(tasks=TASKS)
    assert "model-index" not in loaded.content and loaded.data.eval_results is None
    assert "## Results" not in loaded.text and not _rows(loaded) and "as above" not in loaded.text
    assert "metaworld" in loaded.data.tags


def test_without_tasks_it_is_of_no_suite(card):
    loaded = card()
    assert "metaworld" not in loaded.data.tags and "suite" not in loaded.text


def test_model_of_another_suite(card):
    loaded = card(tasks="FetchReach-v4", env_kwargs={"chunk_size": 3, "n_goals": 9})
    assert "fetch" in loaded.data.tags and "metaworld" not in loaded.data.tags
    act, evaluate = _blocks(loaded, "python")[1:]
    assert 'make_vla_env("FetchReach-v4", goal_split="test", suite="fetch", chunk_size=3)' in act
    assert '"FetchReach-v4",\n        suite="fetch"' in evaluate


def test_evaluation_on_some_of_the_tasks(card):
    loaded = card(tasks="MT10", result=RESULT)
    assert f'model,\n        ["{TASKS[0]}", "{TASKS[1]}"],\n' in _blocks(loaded, "python")[-1]
    assert {each.dataset_name for each in loaded.data.eval_results} == {
        *(f"metaworld {task}" for task in TASKS),
        f"metaworld {', '.join(TASKS)}",
    }


def test_says_what_it_reads_and_predicts(card):
    text = card().text
    assert "`image` (8 x 8)" in text and "`state` (3 numbers)" in text and "`instruction` (16 bytes)" in text
    assert "privileged" not in text.split("## Usage")[0]
    assert "chunks of 3 actions of 2 numbers" in text


def test_policy_that_is_no_vla_is_not_called_one(card):
    model = PPOSelfBC("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, device="cpu")
    loaded = card(model)
    assert not {"vision-language-action", "robotics"} & set(loaded.data.tags)
    assert loaded.data.pipeline_tag == "reinforcement-learning" and "language" not in loaded.text


def test_hyperparameters_in_the_card_make_the_same_algorithm(card, make_model, make_vec_env):
    settings = {"learning_rate": 1e-3, "clip_range": 0.3, "target_kl": 0.5, "normalize_advantage": "task", "bc_weight": 0.25}
    settings.update(clip_range_vf=0.4, replay_buffer_kwargs={"episodes_per_task": 7}, critic_epochs=3, seed=11)
    model = make_model(**settings).learn(16)
    (hyperparameters, policy) = map(yaml.safe_load, _blocks(card(model), "yaml"))
    assert settings.items() <= hyperparameters.items()
    assert hyperparameters["n_steps"] == 8 and hyperparameters["gamma"] == 0.9
    assert (
        policy["head_kwargs"]["hidden_dim"] == 16
        and policy["backbone"] == "SmolVLMBackbone"
        and "backbone_kwargs" not in policy
    )
    again = PPOSelfBC("VLAPolicy", make_vec_env(), policy_kwargs=model.policy_kwargs, **hyperparameters)
    assert again.clip_range(1.0) == 0.3 and again.clip_range_vf(1.0) == 0.4 and again.replay_buffer.episodes_per_task == 7
    assert "16 timesteps" in card(model).text


def _falling_rate(remaining: float) -> float:
    return 1e-3 * remaining


def test_hyperparameters_that_are_objects_are_recognised(card, make_model):
    model = make_model(learning_rate=_falling_rate, bc_weight=ConstantWeight(0.125)).learn(16)
    hyperparameters = yaml.safe_load(_blocks(card(model), "yaml")[0])
    assert hyperparameters["bc_weight"] == "ConstantWeight(weight=0.125)" and hyperparameters["learning_rate"].endswith(
        "_falling_rate"
    )


def test_training_is_told_as_it_was(card, make_model):
    assert "without self behaviour cloning" in card(make_model(bc_weight=0).learn(16)).text
    assert "with self behaviour cloning" in card(make_model().learn(16)).text
    once = make_model().learn(16)
    assert f"16 timesteps of `PPOSelfBC` (decisions of the policy), {once.num_primitive_steps} primitive" in card(once).text
    assert "32 timesteps of `PPOSelfBC` (decisions of the policy), in 2 environments" in card(once.learn(16)).text
    fresh = card(make_model()).text
    assert "not yet trained by reinforcement learning" in fresh and "timesteps" not in fresh and "learning_rate" not in fresh


# ---------------------------------------------------------------------------------------------------------------------
# The code of a card


def _run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the card's code as a script, the repository being the folder."""

    def download(repo_id: str, filename: str) -> str:
        assert repo_id == "ann/close-drawers"
        return str(folder / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("\n".join(_blocks(ModelCard.load(folder / "README.md"), "python")), namespace)
    return namespace


def test_code_acts_anywhere(make_model, tmp_path, monkeypatch):
    for name, model in (
        ("vla", make_model()),
        ("mlp", PPOSelfBC("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, device="cpu")),
    ):
        save_for_hub(model, tmp_path / name, "ann/close-drawers")
        namespace = _run_code(tmp_path / name, monkeypatch)
        assert namespace["model"].action_space.contains(namespace["action"])


def test_code_of_a_model_that_is_not_on_the_hub_reads_it_where_it_is(make_model, tmp_path, monkeypatch):
    save_for_hub(make_model(), tmp_path / "close-drawers", None, result=RESULT)
    card = ModelCard.load(tmp_path / "close-drawers/README.md")
    assert card.data.model_name == "close-drawers" and "hf_hub_download" not in card.text
    monkeypatch.chdir(tmp_path / "close-drawers")
    namespace: dict[str, Any] = {}
    exec(_blocks(card, "python")[0], namespace)
    assert namespace["model"].action_space.shape == (3, 2)


def test_code_acts_on_the_tasks_and_repeats_the_evaluation(tmp_path, monkeypatch, capsys):
    env_kwargs = {"chunk_size": 5, "horizon": 20, "cameras": [Camera("corner4", height=32, width=32)], "quality": "plain"}
    venv = make_vla_vec_env(TASKS[0], n_envs=1, gamma=0.9, privileged=True, **env_kwargs)
    policy_kwargs = {"head_kwargs": {"hidden_dim": 16}, "critic_net_arch": (16,)}
    model = PPOSelfBC("VLAPolicy", venv, n_steps=8, batch_size=8, gamma=0.9, policy_kwargs=policy_kwargs, device="cpu")
    venv.close()
    del env_kwargs["chunk_size"]
    result = evaluate_on_tasks(
        model, TASKS[0], n_goals=1, seed=3, goal_seed=2, split="train", n_action_steps=4, progress=False, **env_kwargs
    )
    save_for_hub(model, tmp_path / "out", "ann/close-drawers", result=result, env_kwargs={"gamma": 0.9, "privileged": True})
    namespace = _run_code(tmp_path / "out", monkeypatch)
    assert namespace["done"] and namespace["env"].unwrapped.horizon == 20
    repeated = namespace["result"]
    assert repeated.episodes == result.episodes and repeated.settings == {**result.settings, "n_envs": 1}
    assert capsys.readouterr().out.endswith(result.table() + "\n")
