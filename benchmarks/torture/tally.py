"""What came of an attack."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """
    Counts tries.

    :param attack: What was tried, for a reader of the table
    """

    attack: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def survived(self, how: str) -> None:
        """
        :param how: What became of it
        """
        self.tried += 1
        self.outcomes[how] += 1

    def lose(self, what: str) -> None:
        """
        :param what: What was lost, and how to see it again
        """
        self.tried += 1
        self.lost.append(what)
        print(f"LOST ({self.attack}): {what}", flush=True)
