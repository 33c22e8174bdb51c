import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.hooks.account import Account
from sidecar.hooks.governor import FLOOR, Governor

pytestmark = pytest.mark.unit

FORWARD_SECONDS = 0.02


class Server:
    """Passes of equal length, sampled regularly at the governor's rate."""

    def __init__(self, governor: Governor, cost_ratio: float) -> None:
        self.governor = governor
        self.cost_seconds = cost_ratio * FORWARD_SECONDS
        self.seconds = 0.0
        self.spent = 0.0
        self._due = 0.0

    def run(self, seconds: float, steered: float = 1.0, outlier: float = 0.0) -> float:
        """Serve for this long; return the share of the time that sampling took."""
        began, spent = self.seconds, self.spent
        while self.seconds < began + seconds:
            rate = min(steered, self.governor.rate)
            self.seconds += FORWARD_SECONDS
            self._due += rate
            if self._due >= 1.0:
                self._due -= 1.0
                cost, outlier = outlier or self.cost_seconds, 0.0
                self.spent += cost
                self.governor.note(cost, self.seconds, rate)
        return (self.spent - spent) / (self.seconds - began)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0005, 0.5), st.floats(0.001, 0.1), st.floats(0.05, 1.0))
def test_the_share_comes_to_rest_within_the_budget(
    cost_ratio: float, budget: float, planned: float
) -> None:
    """Whatever a sampled pass costs, sampling ends within the budget and does not waste it."""
    server = Server(Governor(budget, planned), cost_ratio)

    server.run(400.0)
    share = server.run(200.0)

    assert share <= budget * 1.15  # a rise of a tenth may overshoot until it is judged
    assert share >= 0.6 * min(budget, planned * cost_ratio)


def test_a_rate_within_the_budget_is_left_alone() -> None:
    """A governor that has nothing to do does nothing."""
    governor = Governor(0.005, 0.5)

    Server(governor, 0.004).run(100.0)

    assert governor.rate == 0.5
    assert not governor.holding
    assert governor.ratio == pytest.approx(0.002, rel=0.1)


def test_one_outlier_changes_nothing() -> None:
    """A hook that lost its processor for three seconds is no reason to sample less."""
    governor = Governor(0.005, 1.0)
    server = Server(governor, 0.004)

    server.run(10.0)
    server.run(10.0, outlier=3.0)

    assert governor.rate == 1.0


def test_down_is_fast_and_up_is_slow() -> None:
    """Ten times too dear: within the budget after 6 s; cheap again: no faster than 1.1 a second."""
    governor = Governor(0.005, 1.0)
    server = Server(governor, 0.05)
    server.run(6.0)
    low = governor.rate
    server.cost_seconds = 0.0001 * FORWARD_SECONDS

    server.run(3.0)
    soon = governor.rate
    server.run(60.0)

    assert low * 0.05 <= 0.0055
    assert low < soon <= low * 1.1**4
    assert governor.rate == 1.0


def test_the_rate_never_falls_below_the_floor() -> None:
    """A feature stays observable however dear it is; a plan below the floor stays as planned."""
    governor, rare = Governor(0.001, 1.0), Governor(0.001, FLOOR / 10)

    for each in (governor, rare):
        Server(each, 100.0).run(20_000.0)

    assert governor.rate == FLOOR
    assert rare.rate == FLOOR / 10


def test_a_rate_near_the_floor_recovers() -> None:
    """Few samples are no reason to wait for ever."""
    governor = Governor(0.005, 1.0)
    server = Server(governor, 100.0)
    server.run(5000.0)
    server.cost_seconds = 0.0

    server.run(3000.0)

    assert governor.rate > 0.9


def test_the_daemons_steering_and_the_governor_combine_by_the_lower_one() -> None:
    """While the daemon asks for less, calm stretches do not raise what the governor allows."""
    governor = Governor(0.005, 1.0)
    server = Server(governor, 0.05)
    server.run(30.0)
    allowed = governor.rate

    share = server.run(100.0, steered=0.01)

    assert governor.rate == allowed
    assert share < 0.001


def test_without_a_budget_the_share_is_only_measured() -> None:
    """None switches the governor off, not the meter."""
    governor = Governor(None, 1.0)

    Server(governor, 0.5).run(10.0)

    assert governor.rate == 1.0
    assert governor.ratio == pytest.approx(0.5, rel=0.01)


def test_the_account_feeds_the_governor_and_reports_it() -> None:
    """Sampled and dormant passes both count as time; the report says what was done about it."""
    account, governor = Account(), Governor(0.005, 1.0)
    account.follow(governor)

    for _ in range(10):
        for _ in range(99):
            account.passed(0.01)
        account.sampled(0.01, 0.02, 1.0)
    report = account.report(0.8)

    assert (report.forwards, report.sampled_forwards) == (1000, 10)
    assert report.forward_seconds == pytest.approx(10.0)
    assert report.overhead_ratio == pytest.approx(0.02, rel=0.1)
    assert report.sampling_rate == governor.rate < 0.5
    assert 300 < report.governed_forwards < 1000


def test_the_books_of_a_forked_child_start_a_stretch_afresh() -> None:
    """Time that runs backwards is no share."""
    account, governor = Account(), Governor(0.005, 1.0)
    account.follow(governor)
    account.passed(100.0)
    account.sampled(0.1, 0.0, 1.0)
    account.report(1.0)

    account.reset()
    for _ in range(20):
        account.sampled(0.1, 0.0001, 1.0)
    report = account.report(1.0)

    assert report.overhead_ratio == pytest.approx(0.001)
    assert governor.rate == 1.0
