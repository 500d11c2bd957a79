"""The clock: loops stop in time for their next step, and no work begins after time is up."""

import pytest

from crosscoding.clock import UNLIMITED, Clock, OutOfTime


def test_nothing_starts_after_time_is_up(now):
    clock, beats = Clock(10.0, lambda: beats.append(now[0])), []
    clock.tick()
    now[0] = 10.5
    assert clock.is_over()
    assert clock.left == 0
    with pytest.raises(OutOfTime):
        clock.tick()
    assert beats == [0.0, 10.5]


def test_a_loop_ends_before_the_step_that_would_be_too_long(now):
    """85 % of 100 seconds are for fits, and a step takes 20 of them."""
    clock, steps = Clock(100.0), 0
    stop = clock.within()
    while not stop():
        steps, now[0] = steps + 1, now[0] + 20.0
    assert steps == 4
    assert clock.has_cut
    assert not clock.is_late()


def test_pieces_grow_while_they_are_quick_and_shrink_when_they_are_slow(now):
    clock, sizes = Clock(100.0), []
    for some in clock.slices(1000, 64, "points"):
        sizes.append(some.stop - some.start)
        now[0] += 0.25 * sizes[-1]  # two seconds are a piece's share: 8 points
    assert sizes[:5] == [1, 2, 4, 8, 4]
    assert sum(sizes) >= 1000
    assert max(sizes) == 8


def test_without_a_limit_pieces_are_as_large_as_they_may_be():
    assert [s.stop for s in UNLIMITED.slices(10, 4, "points")] == [4, 8, 12]
    assert [s.start for s in UNLIMITED.slices(0, 4, "points")] == [0]
    assert not UNLIMITED.within()()


def test_a_clock_with_less_time_has_the_same_beat_and_memory(now):
    beats = []
    clock = Clock(beat=lambda: beats.append(now[0]), max_bytes=2**29).limited(2.0)
    clock.tick()
    assert clock.left == 2.0
    assert beats == [0.0]
    assert clock.piece_bytes(64) == 32


def test_pieces_shrink_if_memory_is_short_but_do_not_grow_if_there_is_plenty():
    assert UNLIMITED.piece_bytes(100) == 100
    assert Clock(max_bytes=2**40).piece_bytes(100) == 100
    assert Clock(max_bytes=1).piece_bytes(100) == 0
