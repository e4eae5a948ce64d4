from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback, EveryNTimesteps

from sb3_vla.callbacks.nested_callbacks import nested_callbacks


def test_every_callback_is_found_once(make_vec_env):
    checkpoints = [CheckpointCallback(1, "nowhere") for _ in range(3)]
    evaluation = EvalCallback(make_vec_env(1), callback_on_new_best=checkpoints[1], callback_after_eval=checkpoints[2])
    event = EveryNTimesteps(8, CallbackList([evaluation]))
    outer = CallbackList([checkpoints[0], event])
    expected = [outer, checkpoints[0], event, event.callback, evaluation, checkpoints[2], checkpoints[1]]
    assert list(nested_callbacks(outer)) == expected
    assert list(nested_callbacks(None)) == []
