"""
MetaWorld MT10 from pixels and language: SFT on few demonstrations, then post-training, for several seeds. Every stage is a
command of ``sb3-vla`` and is left out where its result is there; a training that was stopped goes on. ``make mt10``, or

    python benchmarks/mt10/study.py --demos 100 --seeds 0 1 2
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from sb3_vla.common.run_folder import RunFolder
from sb3_vla_envs import get_suite

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS, RESULTS = ROOT / "runs" / "mt10", ROOT / "results" / "mt10"
CLI = [sys.executable, "-c", "import sys; from sb3_vla.runs.cli import main; sys.exit(main())"]
# What of a run is kept beside its evaluations
KEPT = ("config.yaml", "versions.json", "progress.csv", "validation.csv", "curves.png")
SFT_LOSSES, SFT_RESULT, PROBE, RESULT = "sft_losses.json", "sft.json", "probe.json", "post_trained.json"
# Of others (docs/howto/metaworld.md): post-trained policies are evaluated by them, too
PROTOCOLS = tuple(get_suite("metaworld").protocols)
# By demonstrations a task: epochs of a first SFT, and episodes a task that its policy then plays, from which the second one
# learns how goals look that no demonstration shows
FIRST_ROUND = {10: (10, 200)}


def main() -> None:
    """Run what is missing of the study, then write ``summary.json``, ``curves.png`` and ``models`` in ``results/mt10``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=int, nargs="+", default=[100, 10], metavar="N", help="demonstrations a task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    arguments = parser.parse_args()
    for n_demos in arguments.demos:
        for seed in arguments.seeds:
            Run(n_demos, seed).complete()
    for script in ("summary.py", "curves.py", "publish.py"):
        subprocess.run([sys.executable, HERE / script], check=True)


class Run:
    """
    One seed.

    :param n_demos: Demonstrations of each task
    :param seed: Of everything random: demonstrations, SFT and post-training
    """

    def __init__(self, n_demos: int, seed: int) -> None:
        self.run = RUNS / f"demos_{n_demos}" / f"seed{seed}"
        self.results = RESULTS / f"demos_{n_demos}" / f"seed{seed}"
        self.config = HERE / f"demos_{n_demos}.yml"
        self.seed = seed
        self.first_round = FIRST_ROUND.get(n_demos)
        self.demos = self.run / "demos.npz"
        self.sft_model = self.run / "sft" / "sft_model.zip"
        self.model = self.run / "post_trained" / "best_model.zip"
        #: Evaluations, until all are there: none of another run stays among them
        self.evaluations = self.run / "evaluations"

    def complete(self) -> None:
        """Do what is missing, in order; nothing where all results are there."""
        by_protocol = {protocol: f"post_trained_{protocol}.json" for protocol in PROTOCOLS}
        kept = (SFT_LOSSES, SFT_RESULT, PROBE, RESULT, *by_protocol.values(), *KEPT)
        if all((self.results / name).exists() for name in kept):
            return
        if not self.sft_model.exists():
            self.fine_tune()
        self.evaluations.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.sft_model.with_suffix(".json"), self.evaluations / SFT_LOSSES)
        self.evaluate(self.sft_model, SFT_RESULT)
        if not (self.evaluations / PROBE).exists():
            self.call("probe", self.sft_model, "--out", self.evaluations / PROBE)
        post_trained = self.model.parent
        if not (post_trained / "model.zip").exists():  # which is written last
            for name in (RESULT, *by_protocol.values()):
                (self.evaluations / name).unlink(missing_ok=True)
            if RunFolder(post_trained).has_checkpoints:
                self.resume("train", post_trained)
            else:
                shutil.rmtree(post_trained, ignore_errors=True)
                # Without the demonstrations: from here on it learns from its own episodes alone
                self.call("train", "--init", self.sft_model, "--out", post_trained)
        self.evaluate(self.model, RESULT)
        for protocol, name in by_protocol.items():
            self.evaluate(self.model, name, "--protocol", protocol)
        self.results.mkdir(parents=True, exist_ok=True)
        for name in kept:
            shutil.copy((post_trained if name in KEPT else self.evaluations) / name, self.results)

    def fine_tune(self) -> None:
        """Demonstrations and SFT, in one round or two."""
        if self.model.parent.exists():
            sys.exit(f"{self.model.parent} began with {self.sft_model}, which is gone: put it back, or move the former away")
        shutil.rmtree(self.evaluations, ignore_errors=True)  # of a model before
        if not self.demos.exists():
            self.call("demos", "--out", self.demos)
        if self.first_round is None:
            self.sft(self.sft_model.parent)
            return
        n_epochs, n_episodes = self.first_round
        first, own = self.run / "first_sft", self.run / "own.npz"
        if not own.exists():
            self.sft(first, n_epochs=n_epochs)
            self.call("play", first / "sft_model.zip", "--n-per-task", str(n_episodes), "--out", own)
        self.sft(self.sft_model.parent, "--auxiliary", own)

    def sft(self, folder: Path, *options: str | Path, n_epochs: int | None = None) -> None:
        """
        :param folder: Where the model is to be
        :param options: Of ``sb3-vla sft``, of a run that goes on, too
        :param n_epochs: Instead of those of the configuration
        """
        options = ("--demos", self.demos, *options)
        if (folder / "sft_model.zip").exists():
            return
        if RunFolder(folder).sft_checkpoint.exists():
            self.resume("sft", folder, *options)
            return
        shutil.rmtree(folder, ignore_errors=True)
        epochs = () if n_epochs is None else ("--epochs", str(n_epochs))
        self.call("sft", *options, *epochs, "--out", folder)

    def evaluate(self, model: Path, name: str, *options: str) -> None:
        """
        :param model: A model
        :param name: Of the result file
        :param options: Of ``sb3-vla eval``
        """
        if not (self.evaluations / name).exists():
            self.call("eval", model, *options, "--out", self.evaluations / name)

    def call(self, command: str, *arguments: str | Path) -> None:
        """
        :param command: Of ``sb3-vla``
        :param arguments: Its own, beside configuration and seed
        """
        self._do(command, *arguments, "--config", self.config, "--seed", str(self.seed))

    def resume(self, command: str, folder: Path, *options: str | Path) -> None:
        """
        :param command: Of ``sb3-vla``
        :param folder: The run that goes on
        :param options: Its own, beside that
        """
        self._do(command, "--resume", folder, *options)

    @staticmethod
    def _do(command: str, *arguments: str | Path) -> None:
        # A run writes its command down, and others run it elsewhere
        line = [command, *(str(each.relative_to(ROOT)) if isinstance(each, Path) else each for each in arguments)]
        print("sb3-vla", *line, flush=True)
        subprocess.run([*CLI, *line], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
