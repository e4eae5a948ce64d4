import json
from pathlib import Path

import numpy as np
import pytest

from sb3_vla.evaluation.result import EpisodeRecord, EvaluationResult, results_table, wilson_interval


def record(task: str, goal: int, steps: int | None) -> EpisodeRecord:
    return EpisodeRecord(task, goal, steps is not None, steps, 40 if steps is None else steps, float(steps is not None))


def mixed_result() -> EvaluationResult:
    """Task "a": 10, 20 and a failure; task "b": 60."""
    return EvaluationResult([record("a", 0, 10), record("a", 1, 20), record("a", 2, None), record("b", 0, 60)], {"seed": 3})


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3 (the score method)
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_mirrors_failures_and_stays_within_bounds() -> None:
    low, high = wilson_interval(10, 10)
    assert high == 1.0
    assert low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)  # closed form at n successes
    assert wilson_interval(0, 10) == pytest.approx((0.0, 1.0 - low))
    narrow, wide = wilson_interval(5, 10, 0.5), wilson_interval(5, 10, 0.99)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (2, 5, 1.0)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        wilson_interval(successes, n, confidence)


def test_summary_weighs_tasks_alike_in_success_and_interval() -> None:
    result = mixed_result()
    assert result.tasks["a"].success == pytest.approx(2 / 3)
    assert result.tasks["a"].steps_to_success == 15.0
    assert result.tasks["b"].n_episodes == 1
    overall = result.overall
    assert overall.success == pytest.approx((2 / 3 + 1) / 2)
    assert overall.steps_to_success == pytest.approx((15 + 60) / 2)
    # 1 / (1/4 * 1/3 + 1/4 * 1/1): tasks of three and of one episode are worth three that count alike
    assert (overall.success_low, overall.success_high) == pytest.approx(wilson_interval(5 / 6 * 3, 3))
    assert overall.n_episodes == 4


def test_the_interval_of_equally_many_episodes_a_task_is_that_of_all() -> None:
    records = [record(task, goal, 5 if goal < n else None) for task, n in (("a", 1), ("b", 4)) for goal in range(5)]
    overall = EvaluationResult(records).overall
    assert (overall.success_low, overall.success_high) == pytest.approx(wilson_interval(5, 10))


@pytest.mark.parametrize("n", [1, 10, 99])
def test_the_interval_is_around_the_success(n: int) -> None:
    overall = EvaluationResult([record("a", 0, None), *(record("b", goal, 5) for goal in range(n))]).overall
    assert overall.success_low < overall.success == 0.5 < overall.success_high


def test_steps_to_success_are_none_without_success() -> None:
    result = EvaluationResult([record("a", 0, None)])
    assert result.overall.steps_to_success is None
    assert "-" in result.table().splitlines()[-1].split()


def test_json_round_trip(tmp_path: Path) -> None:
    result = mixed_result()
    result.save(tmp_path / "results.json")
    assert EvaluationResult.load(tmp_path / "results.json") == result
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["summary"]["tasks"]["b"]["steps_to_success"] == 60.0
    assert content["settings"] == {"seed": 3}
    assert content["versions"]["numpy"] == np.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    mixed_result().save(tmp_path / "results.json")
    before = (tmp_path / "results.json").read_bytes()
    broken = mixed_result()
    broken.settings["camera"] = object()
    with pytest.raises(TypeError):
        broken.save(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Cannot read"),
        ("[1, 2]", "no evaluation result"),
        ('{"format": "sb3-vla evaluation", "version": 99}', "version 99"),
        ('{"format": "sb3-vla evaluation", "version": 1, "episodes": [{"task": "a"}]}', "damaged"),
    ],
)
def test_load_names_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        EvaluationResult.load(tmp_path / "results.json")


def test_tables() -> None:
    result = mixed_result()
    lines = result.table().splitlines()
    assert lines[0].split("  ")[0] == "task"
    assert lines[1].split() == ["a", "0.67", "(0.21-0.94)", "15.0", "3"]
    assert lines[-1].split()[:2] == ["mean", "0.83"]
    both = results_table({"SFT": result, "post-trained": EvaluationResult([record("a", 0, 9)])}).splitlines()
    assert both[0].split() == ["SFT", "post-trained"]
    assert both[3].split()[-3:] == ["-", "-", "-"]  # task "b" was not evaluated again
    with pytest.raises(ValueError, match="at least one"):
        results_table({})
