"""What a callback calls in turn."""

from collections.abc import Iterator

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EventCallback


def nested_callbacks(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    """
    :param callback: A callback of SB3, or ``None``
    :return: Iterator over it and all that it calls: the members of a list, what an event or a new best model triggers
    """
    if callback is None:
        return
    yield callback
    children: list[BaseCallback | None] = []
    if isinstance(callback, CallbackList):
        children += callback.callbacks
    if isinstance(callback, EventCallback):
        children.append(callback.callback)
    if isinstance(callback, EvalCallback):
        children.append(callback.callback_on_new_best)
    for child in children:
        yield from nested_callbacks(child)
