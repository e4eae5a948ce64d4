"""
Put the policies of study.py's seed 0 into results/mt10/models, each with its card, evaluation and films, in folders that are
ready for the Hugging Face Hub. What is there is left alone: python benchmarks/mt10/publish.py
"""

from pathlib import Path

from study import RESULTS, RUNS
from summary import load

from sb3_vla import PPOSelfBC, save_for_hub
from sb3_vla.runs.config import load_config
from sb3_vla.runs.quickstart import record_comparison

SEED = "seed0"


def main() -> None:
    """Publish what is complete."""
    for results in sorted(RESULTS.glob(f"demos_*/{SEED}/post_trained.json")):
        demos = results.parents[1].name
        publish(RUNS / demos / SEED, results.parent, RESULTS / "models" / demos)


def publish(run: Path, results: Path, folder: Path) -> None:
    """
    :param run: Of a seed, with its models
    :param results: Of the same, with its evaluations
    :param folder: Where the post-trained policy goes; that of SFT goes beside it
    """
    sft_folder = folder.with_name(f"{folder.name}_sft")
    if folder.exists() and sft_folder.exists():
        return
    before, after = PPOSelfBC.load(run / "sft" / "sft_model.zip"), PPOSelfBC.load(run / "post_trained" / "best_model.zip")
    sft, post_trained = load(results / "sft.json"), load(results / "post_trained.json")
    if not sft_folder.exists():
        save_for_hub(before, sft_folder, None, result=sft, run=run / "sft", metadata={"license": "mit"})
    if not folder.exists():
        trained = run / "post_trained"
        films = trained / "gifs"
        films.mkdir(exist_ok=True)
        record_comparison(load_config(trained / "config.yaml"), before, after, films)
        content = {"result": post_trained, "baseline": sft, "videos": sorted(films.glob("comparison_*.gif")), "run": trained}
        save_for_hub(after, folder, None, metadata={"license": "mit"}, **content)


if __name__ == "__main__":
    main()
