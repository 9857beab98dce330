import numpy as np
import pytest

from mfm_jax.data.loader import batches, clips_of

SOURCE = [{"n": np.array(i, np.int32), "x": np.full(3, i, np.float32)} for i in range(13)]


def numbers(loader, count):
    return [next(loader)["n"].tolist() for _ in range(count)]


def train(**changes):
    return batches(SOURCE, **({"batch": 4, "seed": 3, "train": True} | changes))


def noisy(element, rng):
    return {**element, "x": element["x"] + rng.standard_normal(3, np.float32)}


def test_every_epoch_has_every_element_in_an_order_of_its_own():
    drawn = np.concatenate(numbers(train(batch=1), 39)).reshape(3, 13)
    np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(13), (3, 1)))
    orders = {tuple(epoch) for epoch in drawn.tolist()}
    assert len(orders | {tuple(range(13))}) == 4


def test_training_batches_are_full_across_epochs():
    assert {len(batch) for batch in numbers(train(), 10)} == {4}


def test_the_order_is_a_function_of_the_seed():
    assert numbers(train(), 6) == numbers(train(), 6)
    assert numbers(train(), 6) != numbers(train(seed=4), 6)


def test_evaluation_is_one_pass_in_order():
    loader = batches(SOURCE, batch=5, seed=0, train=False)
    assert [batch["n"].tolist() for batch in loader] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12],
    ]


def test_an_element_is_transformed_afresh_each_time_but_reproducibly():
    drawn, again = (
        [next(loader) for _ in range(8)] for loader in (train(transform=noisy) for _ in range(2))
    )
    noise = {}
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        for n, x in zip(one["n"].tolist(), one["x"], strict=True):
            noise.setdefault(n, set()).add(tuple((x - n).tolist()))
    assert max(map(len, noise.values())) > 1, "a second epoch draws other noise"


def test_a_run_goes_on_from_any_batch():
    straight = train(transform=noisy)
    for _ in range(5):
        next(straight)
    expected = [next(straight)["x"] for _ in range(4)]
    later = train(transform=noisy, first=5)
    np.testing.assert_array_equal([next(later)["x"] for _ in range(4)], expected)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("first", [0, 3])
def test_the_parts_of_a_batch_make_it_up_whatever_their_number(parts, first):
    whole = train(transform=noisy, first=first)
    shares = [train(transform=noisy, first=first, share=(i, parts)) for i in range(parts)]
    for _ in range(6):
        expected = next(whole)
        found = [next(share) for share in shares]
        for name, value in expected.items():
            np.testing.assert_array_equal(np.concatenate([x[name] for x in found]), value)


def test_the_clips_of_a_batch_can_be_told_without_reading_it():
    drawn = numbers(train(), 8)
    found = [clips_of(13, batch=4, seed=3, number=number) for number in range(8)]
    assert found == drawn


def test_too_few_clips_for_a_batch():
    with pytest.raises(ValueError, match="13 clips do not fill a batch of 14: use more clips"):
        train(batch=14)
