"""Masks: how many elements they observe, and which."""

import pytest
import torch
from problems import seeded

import crosscoding as cc


@pytest.mark.parametrize("fraction", [0, 0.05, 0.5, 1])
def test_random_mask_observes_exactly_the_fraction(fraction):
    mask = cc.random_mask((4, 25), fraction, seed=0)
    assert mask.shape == (4, 25)
    assert mask.dtype == torch.bool
    assert mask.sum().item() == round(fraction * 100)


def test_the_seed_determines_random_mask():
    first, again = cc.random_mask((100,), 0.5, seed=3), cc.random_mask((100,), 0.5, seed=seeded(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, cc.random_mask((100,), 0.5, seed=4))


def test_random_mask_observes_every_element_equally_often():
    generator = seeded(0)
    masks = torch.stack([cc.random_mask((8,), 0.25, seed=generator) for _ in range(2000)])
    error = (masks.double().mean(0) - 0.25).abs().max()
    assert error < 5 * (0.25 * 0.75 / 2000) ** 0.5  # five standard errors of a share of 0.25


def test_random_mask_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    cc.random_mask((8,), 0.25)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_random_mask_refuses_an_invalid_fraction(fraction):
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        cc.random_mask((8,), fraction)


@pytest.mark.parametrize(("seed", "error"), [("a", TypeError), (True, TypeError), (-1, ValueError)])
def test_random_mask_refuses_an_invalid_seed(seed, error):
    with pytest.raises(error, match="expected seed"):
        cc.random_mask((8,), 0.5, seed=seed)


def test_rectangle_mask_includes_its_first_and_last_row_and_column():
    mask = cc.rectangle_mask((4, 5), rows=(1, 2), columns=(0, 3))
    wanted = torch.zeros(4, 5, dtype=torch.bool)
    wanted[1:3, 0:4] = True
    assert torch.equal(mask, wanted)


def test_rectangle_mask_covers_every_channel():
    """The paper's eye strip on CelebA: rows 25–39, columns 16–49."""
    mask = cc.rectangle_mask((3, 64, 64), rows=(25, 39), columns=(16, 49))
    assert mask.sum().item() == 3 * 15 * 34
    assert torch.equal(mask[0], mask[2])


def test_rectangle_mask_without_arguments_observes_everything():
    assert cc.rectangle_mask((4, 5)).all()


@pytest.mark.parametrize("rows", [(2, 1), (-1, 2), (0, 4)])
def test_rectangle_mask_refuses_rows_outside_the_image(rows):
    with pytest.raises(ValueError, match="rows within 0-3, first before last"):
        cc.rectangle_mask((4, 5), rows=rows)


def test_rectangle_mask_refuses_columns_outside_the_image():
    with pytest.raises(ValueError, match="columns within 0-4"):
        cc.rectangle_mask((4, 5), columns=(0, 5))


def test_rectangle_mask_refuses_a_shape_that_is_not_an_image():
    with pytest.raises(ValueError, match="shape of an image"):
        cc.rectangle_mask((4,))


def test_stroke_mask_observes_the_pixels_within_half_a_width_of_the_line():
    mask = cc.stroke_mask((6, 6), [(1, 0), (1, 5)], width=2.0)
    wanted = torch.zeros(6, 6, dtype=torch.bool)
    wanted[0:3] = True
    assert torch.equal(mask, wanted)


def test_stroke_mask_of_one_point_is_a_disc():
    mask = cc.stroke_mask((5, 5), [(2, 2)], width=2.0)
    wanted = torch.zeros(5, 5, dtype=torch.bool)
    for row, column in ((2, 2), (1, 2), (3, 2), (2, 1), (2, 3)):
        wanted[row, column] = True
    assert torch.equal(mask, wanted)


def test_stroke_mask_joins_all_its_corners_in_every_channel():
    mask = cc.stroke_mask((3, 8, 8), [(0, 0), (0, 7), (7, 7)], width=1.0)
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[0], wanted[:, 7] = True, True
    assert torch.equal(mask, wanted.expand(3, 8, 8))


@pytest.mark.parametrize(("shape", "points"), [((8,), [(0, 0)]), ((8, 8), [])])
def test_stroke_mask_refuses_other_shapes_and_missing_points(shape, points):
    with pytest.raises(ValueError, match=r"shape of an image and at least one \(row, column\)"):
        cc.stroke_mask(shape, points)


DISTRIBUTIONS = [
    cc.masks.mixed(),
    cc.masks.shares(0.1, 0.4),
    cc.masks.rectangles(),
    cc.masks.halves(),
]


@pytest.mark.parametrize("masks", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("shape", [(8, 6), (3, 8, 6)])
def test_masks_are_drawn_for_pictures(masks, shape):
    drawn = masks.draw(500, shape, generator=seeded(0))
    assert drawn.shape == (500, *shape)
    assert drawn.dtype == torch.bool
    assert torch.equal(drawn, masks.draw(500, shape, generator=seeded(0)))
    assert masks.draw(0, shape, generator=seeded(0)).shape == (0, *shape)
    assert len(drawn.unique(dim=0)) > 5


def test_shares_are_uniform_between_their_bounds():
    drawn = cc.masks.shares(0.1, 0.4).draw(2000, (400,), generator=seeded(0))
    share = drawn.float().mean(1)
    assert abs(share.mean() - 0.25) < 4 * 0.09 / 2000**0.5 + 0.001
    assert share.min() > 0.03
    assert share.max() < 0.5


def test_rows_are_observed_from_none_to_all():
    counts = cc.masks.mixed().draw(4000, (5,), generator=seeded(0)).sum(1)
    frequency = counts.bincount(minlength=6) / 4000  # uniform, as the share is
    assert ((frequency - 1 / 6).abs() < 4 * (5 / 36 / 4000) ** 0.5).all()


def test_rectangles_are_rectangles_of_all_channels():
    drawn = cc.masks.rectangles(0.5).draw(200, (2, 8, 6), generator=seeded(0))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    rows, columns = drawn[:, 0].any(2), drawn[:, 0].any(1)
    assert torch.equal(drawn[:, 0], rows[:, :, None] & columns[:, None])
    assert rows.sum(1).min() == 4
    assert rows.sum(1).max() == 8
    gaps = rows.int().diff(dim=1)
    assert (gaps == 1).sum(1).max() <= 1


def test_halves_and_quadrants_come_equally_often():
    drawn = cc.masks.halves().draw(4000, (4, 6), generator=seeded(0))
    kinds, counts = drawn.unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert sorted(kinds.flatten(1).sum(1).tolist()) == [6] * 4 + [12] * 4
    assert ((counts / 4000 - 1 / 8).abs() < 4 * (7 / 64 / 4000) ** 0.5).all()


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="expected 0 <= least < most <= 1"):
        cc.masks.shares(0.5, 0.4)
    with pytest.raises(ValueError, match="expected least above 0"):
        cc.masks.rectangles(0.0)
    with pytest.raises(ValueError, match="expected the shape of a picture"):
        cc.masks.rectangles().draw(1, (5,), generator=seeded(0))


PICTURES = [cc.masks.mixed(), cc.masks.shares(0.05, 0.3), cc.masks.rectangles(), cc.masks.halves()]


@pytest.mark.parametrize("distribution", PICTURES, ids=repr)
@pytest.mark.parametrize("shape", [(28, 28), (3, 16, 12)])
def test_a_distribution_holds_its_own_draws(distribution, shape):
    own = distribution.draw(400, shape, generator=seeded(0))  # Moran's I is not quite normal
    assert distribution.holds(own).float().mean() > 0.98


def test_distributions_do_not_hold_masks_of_other_kinds():
    random = cc.masks.shares(0.4, 0.6).draw(50, (28, 28), generator=seeded(0))
    half = cc.masks.halves().draw(50, (28, 28), generator=seeded(0))
    stripes = (torch.arange(28) % 4 < 2).expand(1, 28, 28)
    frame = torch.ones(1, 28, 28, dtype=torch.bool)
    frame[:, 4:-4, 4:-4] = False
    assert not cc.masks.shares(0.0, 1.0).holds(half).any()
    assert not cc.masks.shares(0.05, 0.3).holds(random).any()
    assert not cc.masks.rectangles().holds(random).any()
    assert (
        not cc.masks.halves()
        .holds(~cc.masks.rectangles().draw(50, (28, 28), generator=seeded(1)))
        .any()
    )
    for odd in (stripes, stripes.mT, frame):
        assert not cc.masks.mixed().holds(odd).any()
    assert (
        cc.masks.mixed().holds(stripes[:, 0]).all()
    )  # of rows, all with a share are equally likely
    assert not cc.masks.rectangles().holds(stripes[:, 0]).any()


def test_given_masks_are_held_and_no_others():
    own = torch.rand(5, 30, generator=seeded(0)) < 0.5
    known = cc.masks.distributions.Given(own)
    assert known.holds(own).all()
    changed = own.clone()
    changed[:, 7] ^= True
    assert not known.holds(changed).any()
    assert not known.holds(own[:, :10]).any()


@pytest.mark.parametrize("kind", ["columns", "rows", "board", "one side", "one half below"])
def test_patterns_are_not_taken_for_pixels_at_random(kind):
    place, random = torch.arange(28), torch.rand(28, 28, generator=seeded(0)) < 0.2
    row, column = place[:, None], place[None, :]
    mask = {
        "columns": (column % 2 == 0).expand(28, 28),
        "rows": (row % 2 == 0).expand(28, 28),
        "board": (row + column) % 2 == 0,
        "one side": random & (column >= 14),
        "one half below": random & (row >= 14),
    }[kind]
    shares = cc.masks.shares(0.05, 0.6)
    assert shares.holds(random[None]).all()
    assert not shares.holds(mask[None]).any()
