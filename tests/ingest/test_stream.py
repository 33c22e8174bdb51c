"""The ingest stream of a real daemon: what is taken, what is refused, what is counted."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.features import LayerKey, Request
from sidecar.ingest.accounting import REASON_LIMIT
from sidecar.monitor import IngestCounts, Window
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from sidecar.wire import (
    Acknowledgement,
    Hello,
    HookReport,
    OutgoingBatch,
    OutgoingTensor,
    Refusal,
    RegisterLayer,
    Welcome,
)
from tests.ingest.conftest import (
    LAYER,
    REVISION,
    WIDTH,
    GrpcClient,
    LaneClient,
    RawClient,
    open_client,
)

pytestmark = pytest.mark.service

Open = Callable[[], RawClient]


def counts(running: RunningDaemon) -> IngestCounts:
    """Return the daemon's ledger, after checking that nothing in it is lost."""
    found = running.daemon.ledger.counts()
    assert found.received == found.accepted + sum(found.refused.values())
    assert found.accepted == found.processed + sum(found.dropped.values()) + found.in_flight
    return found


def test_a_batch_reaches_the_distribution_of_every_feature(
    running: RunningDaemon, client: RawClient
) -> None:
    """What was sent is what is kept, value by value."""
    values = np.arange(40, dtype=np.float32).reshape(10, WIDTH)

    welcome = client.hello()
    answers = client.read_until_settled(client.batch(values))

    assert isinstance(welcome, Welcome)
    assert isinstance(answers[-1], Acknowledgement)
    for index in range(WIDTH):
        live = running.daemon.monitor.distribution(LAYER.feature(index), Window.CURRENT)
        column = values[:, index].astype(np.float64)
        assert (10, column.min(), column.max()) == (live.count, live.minimum, live.maximum)
        assert live.mean == pytest.approx(column.mean())
        assert live.variance == pytest.approx(column.var())
    assert 1 == counts(running).processed


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (OutgoingTensor(1, "f32", (2, WIDTH), b"x" * 8), "SC202"),
        (OutgoingTensor(1, "f32", (2, 3), b"x" * 24), "SC203"),
        (OutgoingTensor(9, "f32", (1, WIDTH), b"x" * 16), "SC301"),
        (OutgoingTensor(1, "f16", (1, WIDTH), b"x" * 16), "SC202"),
    ],
)
def test_a_lying_tensor_is_refused_by_code_and_the_stream_goes_on(
    running: RunningDaemon, client: RawClient, tensor: OutgoingTensor, code: str
) -> None:
    """One bad batch costs that batch and nothing else."""
    client.hello()
    requests = tuple([Request()] * tensor.shape[0])
    client.sequence = 1
    client.say(OutgoingBatch(1, (tensor,), requests))
    refusal = client.refusal()
    client.read_until_settled(client.batch(np.ones((3, WIDTH))))

    assert (1, code) == (refusal.sequence, refusal.code)
    found = counts(running)
    assert {refusal.reason: 1} == dict(found.refused)
    assert 1 == found.processed


def test_messages_before_the_hello_are_refused(running: RunningDaemon, client: RawClient) -> None:
    """Nothing is taken from a stream that has not said whose it is."""
    client.say(RegisterLayer(1, LAYER, WIDTH))
    refusal = client.refusal()

    assert "SC302" == refusal.code
    assert {"unregistered_stream": 1} == dict(counts(running).refused)


def test_an_unknown_model_is_named_with_the_known_ones(
    running: RunningDaemon, client: RawClient
) -> None:
    """Whoever reads the hook's log knows what to mend."""
    client.say(Hello("huge", REVISION))
    refusal = client.refusal()

    assert "SC401" == refusal.code
    assert "models: tiny" in refusal.detail
    assert {"unknown_model": 1} == dict(counts(running).refused)


def test_a_layer_with_another_width_is_a_conflict(client: RawClient, opened: Open) -> None:
    """Two processes cannot give one layer two meanings."""
    client.hello()
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))  # so the layer is registered
    other = opened()
    other.say(Hello("tiny", REVISION))
    other.say(RegisterLayer(1, LAYER, WIDTH + 1))

    assert "SC501" == other.refusal().code


def test_an_oversized_message_is_refused_and_counted(
    running: RunningDaemon, client: RawClient
) -> None:
    """A message over the limit costs itself, not the stream."""
    client.hello()
    sequence = client.batch(np.zeros((64 * 1024 // 16 + 1, WIDTH)))
    refusal = client.refusal()
    client.read_until_settled(client.batch(np.ones((3, WIDTH))))

    assert "SC205" == refusal.code
    assert sequence + 1 == client.sequence
    assert {"message_too_large": 1} == dict(counts(running).refused)


def test_a_message_over_grpcs_own_limit_ends_only_its_stream(running: RunningDaemon) -> None:
    """The sender of an absurd message is told why its stream ended, and the daemon serves on."""
    absurd = GrpcClient(running.grpc)
    absurd.hello()
    absurd.send(b"x" * (1 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        absurd.refusal()
    again = GrpcClient(running.grpc)
    assert isinstance(again.hello(), Welcome)
    for item in (absurd, again):
        item.close()

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
    counts(running)


def test_non_finite_values_are_counted_and_touch_nothing_else(
    running: RunningDaemon, client: RawClient
) -> None:
    """NaN and infinities never reach a moment."""
    client.hello()
    values = np.ones((20, WIDTH), np.float32)
    values[3, 0], values[4, 0], values[5, 0] = np.nan, np.inf, -np.inf
    client.read_until_settled(client.batch(values))

    live = running.daemon.monitor.distribution(LAYER.feature(0), Window.CURRENT)
    assert (17, 3, 1.0, 1.0) == (live.count, live.nonfinite, live.mean, live.maximum)
    wait_until(lambda: running.daemon.monitor.layers()[0].nonfinite == 3, what="a closed window")


def test_hook_reports_add_up_over_restarts(running: RunningDaemon, client: RawClient) -> None:
    """A hook process that starts again from zero takes nothing away; rate and share are the newest."""
    client.hello()
    for report in (
        HookReport(10, dropped={"queue_full": 4}, governed_forwards=5),
        HookReport(3, sampling_rate=0.25, governed_forwards=2, overhead_ratio=0.004),
    ):
        client.say(report)
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))

    found = counts(running)
    assert (13, {"queue_full": 4}) == (found.forwards, dict(found.hook_dropped))
    assert (7, 0.25, 0.004) == (
        found.governed_forwards,
        found.hook_sampling_rate,
        found.hook_overhead_ratio,
    )


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(payload=st.binary(max_size=200))
def test_garbage_is_refused_and_the_ledger_balances(
    running: RunningDaemon, client: RawClient, payload: bytes
) -> None:
    """No bytes on the wire crash a stream, and each message is accounted for."""
    before = counts(running)
    client.send(payload)
    wait_until(lambda: counts(running).received > before.received or _was_report(payload))

    counts(running)


def _was_report(payload: bytes) -> bool:
    """Whether the bytes happen to be a valid message that is no batch, such as an empty report."""
    from sidecar.errors import SidecarError  # noqa: PLC0415 - only here
    from sidecar.wire import Batch, StreamDecoder  # noqa: PLC0415 - only here

    try:
        return not isinstance(StreamDecoder(width_limit=1 << 18).decode(payload), Batch)
    except SidecarError:
        return False


def test_more_streams_than_allowed_are_turned_away(tmp_path: Path, transport: str) -> None:
    """A leak of connections on the client's side cannot take the daemon down; the limit is counted."""
    settings = {"models": [{"name": "tiny"}], "ingest": {"stream_limit": 2}}
    with running_daemon(tmp_path, settings) as found:
        # The limit is one for both: whatever carries the others takes its share.
        open_ = [LaneClient(found.lane), GrpcClient(found.grpc)]
        for item in open_:
            assert isinstance(item.hello(), Welcome)
        extra = open_client(found, transport)
        outcome = _turned_away(extra)
        refused = dict(counts(found).refused)
        for item in [*open_, extra]:
            item.close()
        wait_until(lambda: counts(found).streams == 0)

    assert "SC603" in outcome
    assert {"limit_reached": 1} == refused


def _turned_away(client: RawClient) -> str:
    """Return how the daemon says no."""
    with contextlib.suppress(BrokenPipeError):  # it may have hung up already; what it said is there
        client.say(Hello("tiny", REVISION))
    try:
        return str(client.refusal().code)
    except grpc.RpcError as error:
        return str(error.details())


def test_refusals_do_not_acknowledge_batches_before_them(
    running: RunningDaemon, client: RawClient
) -> None:
    """Acknowledgements stay in order whatever is refused in between."""
    client.hello()
    good = [client.batch(np.ones((50, WIDTH))) for _ in range(20)]
    bad = OutgoingTensor(9, "f32", (1, WIDTH), b"x" * 16)
    client.sequence += 1
    request = Request()
    client.say(OutgoingBatch(client.sequence, (bad,), (request,)))
    answers = client.read_until_settled(client.sequence)

    numbers = [a.sequence for a in answers if isinstance(a, Acknowledgement)]
    assert sorted(numbers) == numbers
    assert 1 == sum(isinstance(a, Refusal) for a in answers)
    assert len(good) == counts(running).processed


def test_a_number_that_comes_again_does_not_hold_up_acknowledgements(
    running: RunningDaemon, client: RawClient
) -> None:
    """A client that repeats a refused batch gets its later batches acknowledged all the same."""
    client.hello()
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))
    lie = OutgoingTensor(9, "f32", (1, WIDTH), b"x" * 16)
    with running.daemon.monitor._lock:  # noqa: SLF001 - a batch that waits while others are refused
        client.batch(np.ones((1, WIDTH)))
        for _ in range(3):
            client.say(OutgoingBatch(client.sequence + 1, (lie,), (Request(),)))
        wait_until(lambda: counts(running).received == 5, what="the refusals")
    client.sequence += 1
    answers = client.read_until_settled(client.batch(np.ones((1, WIDTH))))

    assert client.sequence == answers[-1].sequence
    assert 3 == counts(running).processed


def test_after_a_refused_hello_nothing_is_taken(running: RunningDaemon, client: RawClient) -> None:
    """What a stream sends all the same is refused and counted, not passed over."""
    client.hello("huge")
    client.batch(np.ones((1, WIDTH)))

    wait_until(lambda: counts(running).received == 3, what="the refusals")
    assert {"unknown_model": 1, "unregistered_stream": 2} == dict(counts(running).refused)


def test_a_layer_at_the_limit_does_not_cost_the_others_of_its_batch(
    running: RunningDaemon, client: RawClient, opened: Open
) -> None:
    """The batch counts as dropped, and what could be written of it was."""
    client.hello()
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))
    other = opened()
    other.say(Hello("tiny", REVISION))
    second = LayerKey("tiny", REVISION, "second")
    other.say(RegisterLayer(1, LAYER, WIDTH + 1))
    other.say(RegisterLayer(2, second, 1))
    tensors = tuple(
        OutgoingTensor(i, "f32", (1, width), b"\0\0\0\0" * width)
        for i, width in ((1, WIDTH + 1), (2, 1))
    )
    other.say(OutgoingBatch(1, tensors, (Request(),)))
    other.read_until_settled(1)

    assert {"shape_mismatch": 1} == dict(counts(running).dropped)
    assert 1 == running.daemon.monitor.distribution(second.feature(0), Window.CURRENT).count


def test_two_models_of_one_process_keep_separate_books(tmp_path: Path, transport: str) -> None:
    """Their sinks report in turn; neither report is taken for a restart of the other."""
    models = {"models": [{"name": "tiny"}, {"name": "other"}]}
    with running_daemon(tmp_path, models) as found:
        for forwards, model in ((1000, "tiny"), (5, "other"), (1001, "tiny"), (6, "other")):
            client = open_client(found, transport)
            client.hello(model, client_id="one-process")
            client.say(HookReport(forwards=forwards))
            client.read_until_settled(client.batch(np.ones((1, WIDTH))))
            client.close()

        assert 1007 == counts(found).forwards


def test_the_history_of_a_hook_that_outlives_a_daemon_is_no_news(
    running: RunningDaemon, client: RawClient
) -> None:
    """What it told the daemon of before is not told again; what comes now is."""
    client.hello()
    for drops in (5000, 5001):
        report = HookReport(forwards=9000, batches_sent=400, errors=3, dropped={"error": drops})
        client.say(report)
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))

    found = counts(running)
    assert (0, 0, {"error": 1}) == (found.forwards, found.hook_errors, dict(found.hook_dropped))


def test_reasons_that_hooks_make_up_are_bounded(running: RunningDaemon, client: RawClient) -> None:
    """Each reason is kept for ever and scraped; beyond the limit they are one."""
    client.hello()
    for i in range(REASON_LIMIT + 8):
        client.say(HookReport(dropped={f"reason-{i}": 1}))
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))

    found = counts(running).hook_dropped
    assert (REASON_LIMIT + 1, 8) == (len(found), found["other"])


def test_batches_without_payload_are_bounded_in_number(
    running: RunningDaemon, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded in bytes of payload; what has none still takes memory."""
    monkeypatch.setattr("sidecar.ingest.pipeline.ENTRY_LIMIT", 10)
    client.hello()
    client.read_until_settled(client.batch(np.ones((1, WIDTH))))
    with running.daemon.monitor._lock:  # noqa: SLF001 - a writer that cannot go on
        client.batch(np.ones((1, WIDTH)))
        for _ in range(20):
            client.sequence += 1
            client.say(OutgoingBatch(client.sequence, (), (Request(),)))
        wait_until(lambda: counts(running).received == 22, what="all of them")
        found = counts(running)

    assert found.in_flight <= 11
    assert found.refused["queue_full"] >= 10
