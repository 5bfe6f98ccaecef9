"""Which samples a stage takes."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny_run import tiny_recipe

from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.samples import Sample
from emocaliber.train.choosing import choose_samples, prompt_samples


def samples_of(**sizes: int) -> list[Sample]:
    names = {"faces": "ferplus-8", "photos": "emotion6-7", "drawings": "sentiment-2"}
    return [
        Sample(
            image=f"{name}-{i}.png", taxonomy=names[name], votes={"anger": 1} if name != "drawings" else {"negative": 1}
        )
        for name, size in sizes.items()
        for i in range(size)
    ]


def counts(samples: list[Sample]) -> dict[str, int]:
    return dict(Counter(sample.taxonomy for sample in samples))


def test_all_are_taken_where_no_number_or_a_larger_one_is_given() -> None:
    every = samples_of(faces=30, photos=5)
    for count in (None, 35, 1000):
        chosen = choose_samples(every, count, 0.0, seed=1)
        assert sorted(sample.id for sample in chosen) == sorted(sample.id for sample in every)
        assert chosen != every
        assert chosen == choose_samples(every, count, 1.0, seed=1)


def test_a_balance_gives_small_taxonomies_their_share() -> None:
    every = samples_of(faces=1600, photos=100, drawings=4)
    # Square roots are 40, 10 and 2: of 52 that is 40, 10 and 2.
    assert counts(choose_samples(every, 52, 0.5, seed=1)) == {"ferplus-8": 40, "emotion6-7": 10, "sentiment-2": 2}
    # As many of each would be 100; of the drawings there are 4, and the others share what is left.
    assert counts(choose_samples(every, 300, 0.0, seed=1)) == {"ferplus-8": 196, "emotion6-7": 100, "sentiment-2": 4}
    assert choose_samples(every, 52, 0.5, seed=1) == choose_samples(every, 52, 0.5, seed=1)
    assert choose_samples(every, 52, 0.5, seed=1) != choose_samples(every, 52, 0.5, seed=2)


def test_prompts_go_over_the_chosen_samples() -> None:
    every = samples_of(faces=90, photos=10)
    drawn = prompt_samples(every, 40, 0.0, seed=3)
    assert counts(drawn) == {"ferplus-8": 30, "emotion6-7": 10}
    assert counts(prompt_samples(every, 200, 1.0, seed=3)) == {"ferplus-8": 180, "emotion6-7": 20}


def test_a_balance_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"balance is 1\.5, expected a number in \[0, 1\]"):
        tiny_recipe(data={"samples": "scenes:10", "balance": 1.5})
