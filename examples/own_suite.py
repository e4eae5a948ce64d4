"""
A suite of your own: tasks in Gymnasium environments, with instructions and an expert, for everything that MetaWorld's tasks
work with: demonstrations, fine-tuning, post-training, evaluation, films.

Run: python examples/own_suite.py            (about two minutes on two cores)
 or: PYTHONPATH=examples sb3-vla quickstart --suite own_suite:hills
See: how often a policy, fine-tuned on the expert's demonstrations, drives up a hill that it sees in pictures.
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym

from sb3_vla import EvaluationResult, PPOSelfBC, evaluate_on_tasks, fine_tune, make_vla_vec_env
from sb3_vla_envs import GymSuite, GymTask, collect_demonstrations, register_suite


def expert(env: gym.Env) -> list[float]:
    """Full throttle in the direction in which the car moves, until it has swung up the hill."""
    return [1.0 if env.state[1] >= 0 else -1.0]


register_suite(
    GymSuite(
        "hills",
        # Names of tasks, the environment of each, ways of saying what is to be done, and arguments of the environment
        {
            "climb": GymTask("MountainCarContinuous-v0", ("drive up the hill", "get to the flag")),
            "race": GymTask("MountainCarContinuous-v0", ("race up the hill",), {"goal_velocity": 0.03}),
        },
        # The environment says by `terminated` that it is done; "is_success" would be a key of its info
        success=lambda obs, reward, terminated, info: terminated,
        expert=expert,
        horizon=200,
    )
)


def main(arguments: Sequence[str] | None = None) -> EvaluationResult:
    parser = argparse.ArgumentParser(description="A suite of your own")
    parser.add_argument("--demonstrations", type=int, default=40, help="of each task")
    parser.add_argument("--epochs", type=int, default=30, help="of supervised fine-tuning")
    parser.add_argument("--eval-goals", type=int, default=10, help="of each task: starting positions that no one trained with")
    args = parser.parse_args(arguments)

    # `keys` was not given: the observed vector is the state, and since it has no picture, render() draws one
    model = PPOSelfBC("VLAPolicy", make_vla_vec_env("hills", n_envs=1), gamma=0.99, seed=0)
    fine_tune(model, collect_demonstrations("hills", args.demonstrations), n_epochs=args.epochs, seed=0)
    result = evaluate_on_tasks(model, "hills", args.eval_goals, n_envs=1)
    print(result.table())
    return result


if __name__ == "__main__":
    main()
