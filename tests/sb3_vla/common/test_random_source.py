import threading

import pytest
import torch as th

from sb3_vla.common.random_source import drawing_from

ZEROS = th.zeros(2, 3)
DRAWS = {
    "randn_like": lambda: th.randn_like(ZEROS),
    "rand": lambda: th.rand(2, 3),
    "randint": lambda: th.randint(1000, (5,)),
    "rand_like": lambda: th.rand_like(ZEROS),
    "randperm": lambda: th.randperm(20),
    "in place": lambda: ZEROS.clone().exponential_(),
    "normal": lambda: th.distributions.Normal(ZEROS, 1 + ZEROS).rsample(),
    "categorical": lambda: th.distributions.Categorical(logits=th.zeros(5, 100)).sample(),
    "bernoulli": lambda: th.distributions.Bernoulli(logits=th.zeros(50)).sample(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_what_is_drawn_is_what_the_global_generator_of_that_seed_gives_and_this_is_left_alone(draw):
    th.manual_seed(5)
    expected = [draw(), draw()]
    th.manual_seed(8)
    state = th.get_rng_state()
    generator = th.Generator().manual_seed(5)
    for numbers in expected:
        with drawing_from(generator):
            assert th.equal(draw(), numbers)
    assert th.equal(th.get_rng_state(), state)


def test_other_threads_and_no_generator_draw_from_the_global_one():
    th.manual_seed(5)
    expected = [th.rand(3), th.rand(3)]
    th.manual_seed(5)
    drawn = []
    with drawing_from(th.Generator().manual_seed(9)):
        thread = threading.Thread(target=lambda: drawn.append(th.rand(3)))
        thread.start()
        thread.join()
    with drawing_from(None):
        drawn.append(th.rand(3))
    assert all(map(th.equal, drawn, expected))
