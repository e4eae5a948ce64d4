"""The whole path, from demonstrations to films of the post-trained policy."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sb3_vla_envs import Demonstration, load_demonstrations
from sb3_vla_envs.progress import Progress

from ..common.run_folder import RunFolder
from ..evaluation.films import record_task_episode
from ..evaluation.gif import gif_path, save_comparison_gif, save_gif
from ..evaluation.result import MODEL_TIMESTEPS, EvaluationResult, results_table
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .checks import check_resuming
from .config import Config
from .models import load_model
from .pipeline import collect, evaluate_model, run_sft
from .plotting import plot_comparison
from .results import load_results, save_results
from .training import draw_curves, post_train, resume_training


def quickstart(config: Config, folder: RunFolder, say: Callable[[str], None] = print) -> dict[str, EvaluationResult]:
    """
    The whole path: demonstrations, SFT, evaluation, post-training, evaluation, table, pictures. What the folder holds of it
    already, as an earlier call was interrupted, is not done again.

    :param config: Configuration
    :param folder: The run's folder
    :param say: Where messages go
    :return: The evaluations of ``"SFT"`` and ``"post-trained"``
    """
    say("1/5  Collecting demonstrations of the suite's expert")
    demonstrations = load_demonstrations(folder.demos) if folder.demos.exists() else collect(config, folder.demos)
    say("2/5  Supervised fine-tuning (SFT)")
    if folder.sft_model.exists():
        sft_model = load_model(folder.sft_model, config.device)
        folder.sft_checkpoint.unlink(missing_ok=True)
    else:
        sft_model = run_sft(config, demonstrations, folder)
    say(f"3/5  Evaluating the SFT policy on goals of the {config.eval.split} split")
    results = load_results(folder)
    if not _is_current(results.get("SFT"), config, sft_model):
        results["SFT"] = evaluate_model(config, sft_model)
        save_results(folder, results)
    say("4/5  Post-training with PPOSelfBC")
    model = _post_train_on(config, folder, demonstrations)
    say("5/5  Evaluating the post-trained policy on the same goals")
    if not _is_current(results.get("post-trained"), config, model):
        results["post-trained"] = evaluate_model(config, model)
    say("\n" + results_table(results))  # before it is saved: a disk may be full
    save_results(folder, results)
    draw_curves(folder, baseline=results["SFT"])
    plot_comparison(results["SFT"], results["post-trained"], folder.path / "comparison.png")
    record_comparison(config, sft_model, model, folder.gifs)
    return results


def _is_current(result: EvaluationResult | None, config: Config, model: PPOSelfBC) -> bool:
    """Whether a result is of a model as it is now, on the goals that the configuration names now."""
    if result is None:
        return False
    now = {MODEL_TIMESTEPS: model.lifetime_timesteps, "n_goals": config.eval.n_goals, "goal_split": config.eval.split}
    return now.items() <= result.settings.items()


def _post_train_on(config: Config, folder: RunFolder, demonstrations: Sequence[Demonstration]) -> PPOSelfBC:
    """
    :param config: Configuration
    :param folder: Folder of a quickstart
    :param demonstrations: What the demonstration buffer holds at the start
    :return: The post-trained model, whether its training has begun and ended already or not
    """
    if folder.model.exists():
        model = load_model(folder.model, config.device)
        if model.num_timesteps >= config.train.total_timesteps:
            return model
    if folder.has_checkpoints:
        return resume_training(config, folder, check_resuming(config, folder))
    return post_train(config, folder, folder.sft_model, demonstrations)


def record_comparison(config: Config, before: PPOSelfBC, after: PPOSelfBC, folder: Path) -> None:
    """
    Film one test goal of each task with either model: a GIF each, and one of both side by side.

    :param config: Configuration
    :param before: Model on the left
    :param after: Model on the right
    :param folder: Where the GIFs go
    """
    with Progress(len(config.tasks), "film", "task") as bar:
        for task in config.tasks:
            films = []
            for name, model in (("sft", before), ("post_trained", after)):
                films.append(
                    record_task_episode(model, task, seed=config.seed, suite=config.suite, **config.acting_settings())
                )
                save_gif(films[-1], gif_path(folder, name, task))
            save_comparison_gif(films[0], films[1], ("SFT", "post-trained"), gif_path(folder, "comparison", task))
            bar.update()
