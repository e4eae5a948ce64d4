"""tests/robustness, with other seeds than those of ``make test``: each test is a try."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from run_settings import ROOT
from tally import Tally

_FILES = {
    "test_crash_points.py": "power cut at each write, sync and rename (tests)",
    "test_damaged_runs.py": "run folders damaged on purpose (tests)",
    "test_hostile_files.py": "files that shall run something (tests)",
    "test_bad_values.py": "arguments, settings and command lines that make no sense (tests)",
    "test_not_finite.py": "NaN in rewards, observations and gradients (tests)",
    "test_exact_resume.py": "resumed trainings that must end bit for bit alike (tests)",
}


def run_tests(seed: int) -> Iterator[Tally]:
    """
    :param seed: Of what hypothesis draws
    :return: Iterator over what came of them, by file
    """
    for name, attack in _FILES.items():
        tally = Tally(attack)
        with tempfile.TemporaryDirectory() as temporary:
            report = Path(temporary) / "report.xml"
            test = ROOT / "tests" / "robustness" / name
            options = ["-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}", f"--junitxml={report}"]
            subprocess.run([sys.executable, "-m", "pytest", *options, str(test)], cwd=ROOT, env=dict(os.environ))
            for case in ElementTree.parse(report).iter("testcase"):
                if case.find("skipped") is not None:
                    continue
                if case.find("failure") is None and case.find("error") is None:
                    tally.survived("passed")
                else:
                    tally.lose(f"{name}::{case.get('name')}")
        yield tally
