"""Reports of complete runs, seeds, and runs that are still going, as text and in a browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sb3_vla.common.run_folder import RunFolder
from sb3_vla.evaluation.result import EpisodeRecord, EvaluationResult
from sb3_vla.runs.cli import main
from sb3_vla.runs.report.page import group_by_experiment
from sb3_vla.runs.report.run_log import read_runs

TASKS = ("push", "pull <fast>")


def evaluation(steps):
    """Two tasks with two episodes each, of which the last one fails."""
    episodes = [EpisodeRecord(task, goal, True, steps, steps, 1.0) for task in TASKS for goal in range(2)]
    episodes[-1] = EpisodeRecord(TASKS[1], 1, False, None, 50, 0.0)
    return EvaluationResult(episodes)


def make_run(path, seed=0, rate=1e-4, is_complete=True, elapsed=(1800, 3600, 5400), iterations=(1, 2, 3)) -> Path:
    settings = {"seed": seed, "train": {"learning_rate": rate, "total_timesteps": 300}}
    folder = RunFolder.create(path, f"sb3-vla train --out {path} --seed {seed}", settings)
    names = ("time/primitive_steps", "time/total_timesteps", "time/time_elapsed", "rollout/success_rate", "demos/pairs")
    lines = [",".join([*names, "demos/episodes", "demos/mean_steps", "demos/mean_steps/push", "time/iterations"])]
    for row, (seconds, iteration) in enumerate(zip(elapsed, iterations, strict=True)):
        timesteps, success = 100 * (row + 1), 0.25 * row + 0.01 * seed
        lines.append(f"{8 * timesteps},{timesteps},{seconds},{success},{90 + row},9,{30 - row},{20 - row},{iteration}")
    folder.progress.write_text("\n".join(lines) + "\n")
    if is_complete:
        folder.model.write_bytes(b"-")
        results = {"SFT": evaluation(40), "post-trained": evaluation(20 + seed)}
        folder.results.write_text(json.dumps({name: result.to_dict() for name, result in results.items()}))
        folder.gifs.mkdir()
        frames = [Image.fromarray(np.full((40, 60, 3), shade, np.uint8)) for shade in (0, 255)]
        frames[0].save(folder.gifs / "comparison_push.gif", save_all=True, append_images=frames[1:])
    return folder.path


def report(tmp_path, *runs, options=()) -> str:
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "report.html"), *options]) == 0
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def cells(text):
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", text)]


def section(text, title):
    return re.search(rf"<h2>{title}</h2>(.*?)</section>", text, re.S).group(1)


def test_one_run_says_all_that_its_folder_holds(tmp_path):
    text = report(tmp_path, make_run(tmp_path / "runs" / "a"))
    assert cells(section(text, "Runs"))[6:] == ["runs/a", "complete", "0", "100%", "2,400", "90 min"]
    # Three of four episodes: Wilson's interval by hand
    assert cells(section(text, "Results"))[5:10] == ["runs/a", "SFT", "0.75 (0.30\N{EN DASH}0.95)", "40.0", "4"]
    assert section(text, "By task").count("<svg") == 2 and "pull &lt;fast&gt;" in section(text, "By task")
    assert "pull <fast>" not in text
    assert section(text, "Films").count("data:image/gif;base64,R0lGOD") == 1
    assert cells(section(text, "What the demonstration buffer holds"))[5:] == ["runs/a", "9", "90 → 92", "30 → 28", "20 → 18"]
    assert "sb3-vla train --out" in section(text, "Commands") and "Settings that differ" not in text
    assert not re.search(r"""(src|href)=["']?(https?:|//|/)""", text), "it needs no network and no other file"
    assert "http-equiv" not in text


def test_runs_that_differ_by_their_seed_are_one_experiment(tmp_path):
    seeds = [make_run(tmp_path / "runs" / f"small-seed{seed}", seed) for seed in range(3)]
    other = make_run(tmp_path / "runs" / "large", rate=1e-3)
    groups = group_by_experiment(read_runs([str(path) for path in [*seeds, other]]))
    assert {name: len(runs) for name, runs in groups.items()} == {"runs/small (3 seeds)": 3, "runs/large": 1}
    text = report(tmp_path, *seeds, other)
    together = cells(section(text, "Results").split("<table>")[2])
    sft, trained = together[5:10], together[10:]
    assert sft == ["runs/small (3 seeds)", "SFT", "0.75 (0.75\N{EN DASH}0.75)", "40.0 (40.0\N{EN DASH}40.0)", "3"]
    # 20 + seed in both tasks, and of three runs none is left out
    assert trained[:2] == ["runs/small (3 seeds)", "post-trained"] and trained[3].startswith("21.0 (20.")
    differences = cells(section(text, "Settings that differ"))
    assert differences[5:] == ["seed", "0", "1", "2", "0", "train.learning_rate", *["0.0001"] * 3, "0.001"]
    assert section(text, "Films").count("<img") == 2, "films of one seed of each experiment"


@pytest.mark.parametrize(
    ("elapsed", "iterations", "hours"),
    [((3600, 7200, 1800), (1, 2, 1), [1.0, 2.0, 2.5]), ((3600, 5400, 7200), (1, 1, 2), [1.0, 2.5, 3.0])],
)
def test_time_goes_on_where_a_run_was_resumed(elapsed, iterations, hours, tmp_path):
    (run,) = read_runs([str(make_run(tmp_path / "a", elapsed=elapsed, iterations=iterations))])
    np.testing.assert_allclose(run.progress["hours"], hours)


def test_what_a_strangers_run_says_is_text(tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    path = make_run(tmp_path / "a")
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", f"seed: {hostile}").replace("0.0001", hostile))
    text = report(tmp_path, path, make_run(tmp_path / "b"))
    assert hostile not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") >= 3, "in both tables"


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = make_run(tmp_path / "a", is_complete=False)
    with (path / "progress.csv").open("a") as file:
        file.write("3200,40")
    (run,) = read_runs([str(path)])
    np.testing.assert_array_equal(run.progress["time/total_timesteps"], [100, 200, 300])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "command: [\n"),
        ("config.yaml", "config: 3\n"),
        ("versions.json", "{"),
        ("versions.json", "[]"),
        ("progress.csv", 'a\n"' + "1\n" * 100_000),
    ],
)
def test_a_damaged_file_is_named(tmp_path, capsys, name, content):
    path = make_run(tmp_path / "a")
    (path / name).write_text(content)
    assert main(["report", str(path), "--out", str(tmp_path / "report.html")]) == 2
    assert f"{name}'" in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_watching_writes_the_page_again_until_the_run_is_complete(tmp_path, monkeypatch):
    path = make_run(tmp_path / "a", is_complete=False)
    pages = []

    def sleep(seconds):
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))
        if len(pages) == 2:
            (path / "model.zip").write_bytes(b"-")
        assert seconds == 5 and len(pages) < 3

    monkeypatch.setattr("sb3_vla.runs.commands.report.time.sleep", sleep)
    text = report(tmp_path, path, options=["--watch", "5"])
    assert len(pages) == 2 and all('http-equiv="refresh" content="5"' in page and "not complete" in page for page in pages)
    assert "http-equiv" not in text and "not complete" not in text and "No evaluation yet" in text


def test_run_that_has_just_begun(tmp_path):
    folder = RunFolder.create(tmp_path / "a", "sb3-vla train", {"seed": 0})
    text = report(tmp_path, folder.path)
    assert "not complete" in text and "Learning curves" not in text and "Films" not in text


def test_an_older_report_is_replaced_and_nothing_else(tmp_path, capsys):
    path = make_run(tmp_path / "a")
    assert report(tmp_path, path) and report(tmp_path, path)
    (tmp_path / "page.html").write_text("mine")
    assert main(["report", str(path), "--out", str(tmp_path / "page.html")]) == 2
    assert "no report" in capsys.readouterr().err and (tmp_path / "page.html").read_text() == "mine"


def test_a_run_that_is_given_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "latest").symlink_to(run)
    assert len(read_runs([str(run), f"{run}/", str(tmp_path / "latest")])) == 1


def test_what_is_no_run_is_named(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "not a run folder" in capsys.readouterr().err
    path = make_run(tmp_path / "a")
    (path / "results.json").write_text("[]")
    assert main(["report", str(path), "--out", str(tmp_path / "x.html")]) == 2
    assert "results.json" in capsys.readouterr().err and not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_page_is_well_laid_out_at_the_widths_of_phone_and_desktop(n_seeds, tmp_path, look_at):
    report(
        tmp_path,
        *[make_run(tmp_path / "runs" / f"s{seed}", seed) for seed in range(n_seeds)],
        make_run(tmp_path / "b", 0, 1.0),
    )
    assert not look_at(tmp_path, ["report.html"])


def test_runs_of_one_seed_or_with_other_beginnings_are_not_seeds_of_an_experiment(tmp_path):
    paths = [make_run(tmp_path / name, seed) for name, seed in (("a0", 0), ("a1", 1), ("again0", 0), ("init2", 2))]
    config = RunFolder(paths[-1]).config_file
    config.write_text(config.read_text().replace("sb3-vla train", "sb3-vla train --init sft.zip"))
    groups = group_by_experiment(read_runs([str(path) for path in paths]))
    assert sorted(len(runs) for runs in groups.values()) == [1, 1, 2]


@pytest.mark.parametrize(
    ("first", "second", "n_experiments"),
    [
        ("runs/large-seed{}/sft_model.zip", "runs/large-seed{}/sft_model.zip", 1),
        ("runs/large/sft_model.zip", "runs/large/sft_model.zip", 1),
        ("runs/large-seed{}/sft_model.zip", "runs/small-seed{}/sft_model.zip", 2),
        ("runs/demos30/sft_model.zip", "runs/demos100/sft_model.zip", 2),
    ],
)
def test_runs_from_other_models_are_not_seeds_of_an_experiment(first, second, n_experiments, tmp_path):
    paths = [make_run(tmp_path / f"a{seed}", seed) for seed in range(2)]
    for seed, (path, given) in enumerate(zip(paths, (first, second), strict=True)):
        config = RunFolder(path).config_file
        config.write_text(config.read_text().replace("sb3-vla train", f"sb3-vla train --init {given.format(seed)}"))
    assert len(group_by_experiment(read_runs([str(path) for path in paths]))) == n_experiments


def test_steps_of_every_task_count(tmp_path):
    def of_tasks(seed):
        steps = {"quick": 10, "slow": 100, "slower": 190, "slowest": 300 + seed}
        return EvaluationResult([EpisodeRecord(task, 0, True, n, n, 1.0) for task, n in steps.items()])

    paths = [make_run(tmp_path / "runs" / f"a-seed{seed}", seed) for seed in range(2)]
    for seed, path in enumerate(paths):
        RunFolder(path).results.write_text(json.dumps({"post-trained": of_tasks(seed).to_dict()}))
    together = cells(section(report(tmp_path, *paths), "Results").split("<table>")[2])
    # Means over tasks of 150 and 150.25
    assert together[8] == "150.1 (150.0\N{EN DASH}150.2)"


def test_a_run_that_trains_on_is_not_complete_by_the_model_of_before(tmp_path):
    path = make_run(tmp_path / "a")
    assert read_runs([str(path)])[0].is_complete
    config = RunFolder(path).config_file
    config.write_text(config.read_text().replace("total_timesteps: 300", "total_timesteps: 600"))
    assert not read_runs([str(path)])[0].is_complete


@pytest.mark.parametrize("command", ["quickstart", "sft", "train"])
def test_a_run_is_complete_once_it_has_made_what_it_was_to_make(command, tmp_path):
    folder = RunFolder.create(tmp_path / "a", f"sb3-vla {command} --out a", {"seed": 0})

    def is_complete():
        return read_runs([str(folder.path)])[0].is_complete

    folder.sft_model.write_bytes(b"-")
    assert is_complete() == (command == "sft")
    folder.results.write_text(json.dumps({"SFT": evaluation(40).to_dict()}))
    assert is_complete() == (command == "sft")
    folder.model.write_bytes(b"-")
    assert is_complete() == (command != "quickstart")
    folder.results.write_text(json.dumps({"SFT": evaluation(40).to_dict(), "post-trained": evaluation(20).to_dict()}))
    assert is_complete()
