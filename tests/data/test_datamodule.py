from itertools import islice

from hyperprior.data.datamodule import SeededImages, StepSampler
from hyperprior.data.dead_leaves import DeadLeaves


def test_ranks_share_the_crops_that_one_rank_would_have():
    alone = list(islice(StepSampler(8, start=3, rank=0, ranks=1), 4))
    ranks = [list(islice(StepSampler(8, start=3, rank=rank, ranks=2), 4)) for rank in range(2)]
    assert alone[0] == list(range(24, 32))
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


def test_a_later_start_goes_on_where_an_earlier_one_would_be():
    assert list(islice(StepSampler(4, 0, 0, 1), 9))[5:] == list(islice(StepSampler(4, 5, 0, 1), 4))


def test_noise_seeds_differ_between_crops_and_runs():
    images = DeadLeaves(16, seed=0)
    seeds = [SeededImages(images, seed)[index][1] for seed in (0, 1) for index in range(50)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
