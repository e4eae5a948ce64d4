"""What PPOSelfBC expects of an environment, beside what SB3 does."""

from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, unwrap_vec_normalize, unwrap_vec_wrapper


def check_chunks(env: VecEnv, gamma: float, required: bool) -> bool:
    """
    :param env: The environment
    :param gamma: The algorithm's discount factor of a primitive step
    :param required: Whether it must take chunks
    :return: Whether it takes chunks
    :raises ValueError: if it discounts rewards inside a chunk by another gamma, or has no chunks where they are required
    """
    if not env.has_attr("chunk_size"):
        if required:
            raise ValueError(
                "VLAPolicy needs an environment that takes chunks and says so by the attributes chunk_size and "
                "chunk_gamma and by info['chunk_length']: wrap it in "
                "sb3_vla_envs.ChunkedActionWrapper(env, chunk_size, gamma=...)"
            )
        return False
    for chunk_gamma in set(env.get_attr("chunk_gamma")):
        if chunk_gamma != gamma:
            raise ValueError(
                f"the environment discounts inside a chunk by gamma={chunk_gamma}, PPOSelfBC by gamma={gamma}: give both "
                f"the same, e.g. ChunkedActionWrapper(env, chunk_size, gamma={gamma})"
            )
    return True


def check_frame_stack(env: VecEnv) -> None:
    """
    :param env: An environment whose observations are normalised
    :raises ValueError: if demonstrations, kept as they were before normalisation, would not be stacked
    """
    stack = unwrap_vec_wrapper(env, VecFrameStack)
    if stack is not None and unwrap_vec_normalize(stack) is not None:
        raise ValueError(
            "VecFrameStack stands around VecNormalize, but behaviour cloning imitates stacked observations from before "
            "normalisation: stack first, VecNormalize(VecFrameStack(env, n_stack)), in rl-baselines3-zoo by "
            "vec_env_wrapper in place of frame_stack; or pass bc_weight=0"
        )
