"""Admission: bounded staleness as arithmetic, with numbers counted by hand."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.sampling.admission import Admission, StalenessWindow


def test_strictly_on_policy_admits_one_step_at_a_time() -> None:
    """4 pairs a step, max_staleness 0: 4 groups before version 1 is out, none more until then."""
    window = StalenessWindow(num_steps=3, publish_interval=1, max_staleness=0)
    admission = Admission(lambda step: 4, window)
    assert admission.admit(10) == 4
    assert admission.admit(10) == 0
    for _ in range(4):
        admission.on_accepted()
    assert admission.admit(10) == 0
    admission.on_version(1)
    assert admission.admit(3) == 3
    assert admission.admit(3) == 1


def test_staleness_and_publish_interval_widen_the_reach() -> None:
    """Version 0, staleness 1, a version every 2 steps: steps 1..(0+1+1)*2 = 4 may be sampled for: 1+2+3+4 = 10."""
    window = StalenessWindow(num_steps=100, publish_interval=2, max_staleness=1)
    admission = Admission(lambda step: step, window)
    assert admission.admit(1000) == 10
    admission.on_version(1)
    assert admission.admit(1000) == 5 + 6


def test_never_more_than_the_run_needs() -> None:
    window = StalenessWindow(num_steps=3, publish_interval=1, max_staleness=50)
    assert Admission(lambda step: 2, window).admit(1000) == 6


def test_a_dropped_group_and_a_discarded_pair_give_their_place_back() -> None:
    window = StalenessWindow(num_steps=1, publish_interval=1, max_staleness=0)
    admission = Admission(lambda step: 2, window)
    assert admission.admit(9) == 2
    admission.on_dropped()
    assert admission.admit(9) == 1
    admission.on_accepted()
    admission.on_discarded()
    assert admission.admit(9) == 1


def test_a_resume_counts_on_from_the_pairs_of_its_source() -> None:
    """2 pairs in each of 2 steps; 3 were accepted before the resume at version 1, so one more may come."""
    window = StalenessWindow(num_steps=2, publish_interval=1, max_staleness=0)
    totals = Counter({"online": 3, "online_bdhs": 9})
    admission = Admission(lambda step: 2, window, source="online", totals=totals)
    admission.on_version(1)
    assert admission.admit(9) == 1
    admission.on_accepted()
    assert totals == {"online": 4, "online_bdhs": 9}


def test_an_interval_that_a_resume_makes_shorter_admits_for_the_next_step() -> None:
    """8 steps at a version every 4 made version 2; from there on every step makes one."""
    window = StalenessWindow(20, 1, max_staleness=0, step=8, version=2)
    assert [window.version_at(step) for step in (9, 10, 12)] == [2, 3, 5]
    assert [window.last_step(version) for version in (2, 3, 5)] == [9, 10, 12]
    totals = Counter(online=16)
    admission = Admission(lambda step: 2, window, totals=totals)
    admission.on_version(2)
    assert admission.admit(9) == 2
    admission.on_version(3)
    assert admission.admit(9) == 2


def test_an_interval_that_a_resume_makes_longer_admits_no_further() -> None:
    """6 steps made 6 versions. With a version every 4, step 8 makes the next one, and 12 the one behind it."""
    window = StalenessWindow(20, 4, max_staleness=1, step=6, version=6)
    assert [window.version_at(step) for step in (7, 8, 9, 12, 13)] == [6, 6, 7, 7, 8]
    assert [window.last_step(version) for version in (6, 7)] == [12, 16]


@given(
    num_before=st.integers(0, 20),
    intervals=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    staleness=st.integers(0, 3),
)
def test_the_reach_is_what_will_be_fresh_enough_after_any_change_of_the_interval(
    num_before: int, intervals: tuple[int, int], staleness: int
) -> None:
    """Versions are counted step by step here."""
    before, now = intervals
    version_at = {}
    version = resumed_at = 0
    for step in range(1, 41):
        version_at[step] = version
        interval = before if step <= num_before else now
        version += step % interval == 0
        if step == num_before:
            resumed_at = version
    window = StalenessWindow(40, now, staleness, num_before, resumed_at)
    for step in range(num_before + 1, 41):
        assert window.version_at(step) == version_at[step]
    reach = [step for step in version_at if version_at[step] <= resumed_at + staleness]
    assert window.last_step(resumed_at) == max(reach)


@given(
    need=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    interval=st.integers(1, 3),
    staleness=st.integers(0, 3),
    fates=st.lists(
        st.sampled_from(["accept", "drop", "discard", "version"]), max_size=60
    ),
)
def test_running_plus_accepted_never_exceeds_what_may_be_used(
    need: list[int], interval: int, staleness: int, fates: list[str]
) -> None:
    window = StalenessWindow(len(need), interval, staleness)
    admission = Admission(lambda step: need[step - 1], window)
    version = 0
    for fate in fates:
        admission.admit(3)
        if fate == "accept" and admission.running:
            admission.on_accepted()
        elif fate == "drop" and admission.running:
            admission.on_dropped()
        elif fate == "discard" and admission.accepted:
            admission.on_discarded()
        elif fate == "version":
            version += 1
            admission.on_version(version)
        # Counted here again, not taken from the window under test.
        reach = min((version + staleness + 1) * interval, len(need))
        assert 0 <= admission.running + admission.accepted <= sum(need[:reach])


def test_a_group_of_several_pairs_takes_as_many_places() -> None:
    """5 pairs wanted, 2 a group: 3 groups, one pair in advance; the next step's 5 then need 2 groups."""
    window = StalenessWindow(num_steps=2, publish_interval=1, max_staleness=0)
    admission = Admission(lambda step: 5, window, pairs_per_group=2)
    assert admission.admit(9) == 3
    assert admission.running == 6
    admission.on_dropped()
    assert admission.admit(9) == 1
    for _ in range(3):
        admission.on_accepted()
    assert admission.accepted == 6
    assert admission.running == 0
    assert admission.free == 0
    admission.on_version(1)
    assert admission.admit(9) == 2
    admission.on_discarded()
    assert admission.free == 1
