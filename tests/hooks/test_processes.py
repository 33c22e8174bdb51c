import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.service

ROOT = Path(__file__).parents[2]
Serve = Callable[..., Any]
Wait = Callable[[Callable[[], Any]], None]

PREAMBLE = """
import os, sys, threading, time
import torch
from sidecar.hooks import Plan, Tap, connect, current_requests
from sidecar.hooks.torch import attach
from sidecar.features import FeatureKind, Request

def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        threading.Event().wait(0.005)

def serve(name):
    with current_requests([Request(name)]):
        return model(torch.ones(1, 4))

torch.set_num_threads(1)
model = torch.nn.Linear(4, 3)
sink = connect(sys.argv[1])
# No budget: in a model this small sampling is most of the pass, and every pass is waited for here.
plan = Plan("m", (Tap("", FeatureKind.NEURON),), revision="r", overhead_budget=None)
attachment = attach(model, plan, sink)
"""


# One process costs seconds; what differs between the transports is run over both.
lane_only = pytest.mark.parametrize("transport", ["lane"], indirect=True)


def run(script: str, *arguments: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, and insist that it ends well and quietly."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


def ids(server: Any) -> list[str]:
    """Return the ids of all requests that have arrived."""
    return [request.id for batch in server.batches for request in batch.requests]


def test_importing_the_hooks_is_cheap() -> None:
    """Over numpy and protobuf the import takes half a CPU second at most and loads nothing heavy."""
    script = """
import sys, time
import numpy, google.protobuf.message, google.protobuf.descriptor_pool
started = time.process_time()
import sidecar.hooks
print(time.process_time() - started)
heavy = {"torch", "grpc", "structlog", "pydantic", "prometheus_client", "yaml", "numba", "asyncio"}
print(sorted(heavy & set(sys.modules)))
"""
    took, loaded = run(script).stdout.splitlines()

    assert loaded == "[]"
    assert float(took) <= 0.5


@pytest.mark.parametrize("transport", ["grpc"], indirect=True)
def test_connecting_and_attaching_start_no_thread(serve: Serve) -> None:
    """Until the first sample the server has no thread more; grpc is loaded by then, not with it."""
    script = (
        PREAMBLE
        + """
before = threading.active_count(), "grpc" in sys.modules
with torch.no_grad():
    serve("r")
wait_for(lambda: sink.report().batches_sent)
print(before, threading.active_count() > 1, "grpc" in sys.modules)
"""
    )

    assert run(script, serve().address).stdout.split("\n")[0] == "(1, True) True True"


def test_a_forked_child_sends_for_itself(serve: Serve, wait_for: Wait) -> None:
    """After a fork in mid-stream parent and child both go on, each with books of its own."""
    script = (
        PREAMBLE
        + """
serve("before")
wait_for(lambda: sink.report().batches_sent == 1)
child = os.fork()
if child == 0:
    assert sink.report().forwards == 0 and sink.pending == 0
    serve("child")
    wait_for(lambda: sink.report().batches_sent == 1)
    assert sink.close(10.0)
    os._exit(0)
serve("parent")
assert os.waitpid(child, 0)[1] == 0
wait_for(lambda: sink.report().batches_sent == 2)
"""
    )
    server = serve()

    run(script, server.address)
    wait_for(lambda: len(ids(server)) == 3)

    assert sorted(ids(server)) == ["before", "child", "parent"]
    assert len({stream.hello.client_id for stream in server.streams}) == 2


def test_forking_under_load_hangs_nobody(serve: Serve, wait_for: Wait) -> None:
    """Forks while other threads hold the hooks' locks or load grpc: every child delivers."""
    script = (
        PREAMBLE
        + """
# What torch sets up in its first pass is locked meanwhile, and for ever in a child born then.
torch.nn.Linear(4, 3)(torch.ones(1, 4))
stop = threading.Event()
def hammer():
    # Without gradients: torch's own lock around them is not made for forks.
    with torch.inference_mode():
        while not stop.is_set():
            model(torch.ones(1, 4))
threads = [threading.Thread(target=hammer) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(8):
    child = os.fork()
    if child == 0:
        for _ in range(20):
            serve(f"child-{number}")
        sink.close(10.0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""
    )
    server = serve()

    run(script, server.address)

    wait_for(lambda: {f"child-{n}" for n in range(8)} <= set(ids(server)))


@lane_only
def test_the_lane_needs_no_grpc(serve: Serve, wait_for: Wait) -> None:
    """From connecting to the last acknowledgement nothing loads grpc, and no thread comes too early."""
    script = (
        PREAMBLE
        + """
before = threading.active_count()
with torch.no_grad():
    serve("r")
wait_for(lambda: sink.report().batches_sent)
assert sink.close(10.0)
print(before, sorted(name for name in sys.modules if name.split(".")[0] == "grpc"))
"""
    )
    server = serve()

    assert run(script, server.address).stdout == "1 []\n"
    wait_for(lambda: ids(server) == ["r"])


@lane_only
def test_a_child_does_not_keep_its_parents_connection_open(serve: Serve, wait_for: Wait) -> None:
    """When the parent dies the daemon hears of it at once, though a forked child lives on."""
    script = (
        PREAMBLE
        + """
serve("parent")
wait_for(lambda: sink.report().batches_sent)
child = os.fork()
if child == 0:
    os.read(0, 1)
    os._exit(0)
os._exit(0)
"""
    )
    server = serve()
    with subprocess.Popen(
        [sys.executable, "-c", script, server.address], cwd=ROOT, stdin=subprocess.PIPE
    ) as process:
        assert process.wait(60) == 0
        wait_for(lambda: server.streams and server.streams[0].ended)


@lane_only
def test_a_preloaded_model_works_in_every_worker(serve: Serve, wait_for: Wait) -> None:
    """Attached before the fork, as preloading servers do: each worker streams for itself."""
    script = (
        PREAMBLE
        + """
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        serve(f"worker-{number}")
        assert sink.close(20.0)
        os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""
    )
    server = serve()

    run(script, server.address)
    wait_for(lambda: len(ids(server)) == 3)

    assert {"worker-0", "worker-1", "worker-2"} == set(ids(server))


def test_forked_workers_do_not_sample_in_step() -> None:
    """Without a seed each child draws its own; with one all go on with the plan's."""
    script = """
import os
from sidecar.hooks.sampler import Sampler
samplers = [Sampler(None), Sampler(7)]
for _ in range(2):
    child = os.fork()
    if not child:
        names = [f"r{number}" for number in range(64)]
        for sampler in samplers:
            chosen = [sampler.choose(0.5, 1) is not None for _ in range(64)]
            print(chosen, sampler.choose_named(0.5, names).runs, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    drawn, planned, drawn_too, planned_too = run(script).stdout.splitlines()

    assert drawn != drawn_too
    assert drawn.partition("]")[2] != drawn_too.partition("]")[2]
    assert planned == planned_too


@lane_only
def test_a_process_that_exits_delivers_its_last_batch(serve: Serve, wait_for: Wait) -> None:
    """Nobody closes the sink; the exit hook does."""
    server = serve()

    run(PREAMBLE + "serve('last')", server.address)

    wait_for(lambda: ids(server) == ["last"])


@lane_only
def test_a_hung_daemon_delays_the_exit_by_two_seconds_at_most(serve: Serve) -> None:
    """The exit hook has a hard deadline."""
    # Exit handlers run newest first: this one comes right after the sink's, before torch's own.
    tell = "import atexit; atexit.register(lambda: print(time.monotonic() - left))\n"
    script = (
        PREAMBLE.replace("sink = ", tell + "sink = ") + "serve('last'); left = time.monotonic()"
    )
    hung = serve(welcomes=False)

    waited = float(run(script, hung.address).stdout)

    assert 0.0 < waited < 4.0


@lane_only
def test_the_kill_switch_is_read_from_the_environment(serve: Serve) -> None:
    """With SIDECAR_HOOKS_DISABLED=1 a server runs as if the hooks were not installed."""
    script = (
        "import os; os.environ['SIDECAR_HOOKS_DISABLED'] = '1'\n"
        + PREAMBLE
        + "serve('r')\nprint(threading.active_count(), len(model._forward_hooks))"
    )
    server = serve()

    assert run(script, server.address).stdout == "1 0\n"
    assert server.streams == []
