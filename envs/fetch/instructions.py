"""What the robot is asked to do, in our own words: several ways of saying it for each Fetch task."""

from __future__ import annotations

# The first wording is the default. Things are called what they look like in the pictures: the goal is a red ball, block and
# puck are nearly black. Short, because a byte-level tokenizer spends one token on every byte.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "FetchReach-v4": ("reach the red ball", "move the gripper to the red ball", "touch the red ball with the hand"),
    "FetchPush-v4": (
        "push the block to the red ball",
        "push the black cube onto the red mark",
        "move the block along the table to the red ball",
    ),
    "FetchSlide-v4": (
        "slide the puck to the red ball",
        "hit the puck so that it stops at the red ball",
        "shoot the black disc across the table to the red mark",
    ),
    "FetchPickAndPlace-v4": (
        "lift the block to the red ball",
        "pick up the black cube and hold it at the red ball",
        "grasp the block and carry it to the red mark",
    ),
}
