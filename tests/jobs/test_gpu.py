"""Jobs wait for memory of a GPU that a stand-in for NVML shows; no GPU is touched."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sidecar import visualise
from sidecar.config import InputConfig, JobsConfig, ModelConfig
from sidecar.errors import ConfigError
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobQueue, JobRequest, JobState, Priority, Runner, worker
from sidecar.jobs.assignment import child_environment
from sidecar.jobs.gpu import GPU_MEMORY, PRESSURE, Admission, GpuMemory, GpuRoom
from sidecar.jobs.spec import FailureEvent, HeldBackEvent, ModelSpec, decode_event, encode_event
from sidecar.recipes import Maximisation, Target
from sidecar.visualise.gpu import Shortage
from tests.jobs import fake_nvml, tiny_model
from tests.jobs.bench import Bench, request, wait_until
from tests.jobs.fake_nvml import FakeNvml

GIB = 1 << 30
MODEL = ModelSpec("m", "a:b", "", 32, (0, 0, 0), (1, 1, 1))


def admission(nvml: Callable[[], Any], device: str = "cuda", **gpu: object) -> Admission:
    """Return an admission of one device, over a stand-in."""
    return Admission(JobsConfig(device=device, gpu=gpu), {}, load=nvml)  # type: ignore[arg-type]  # checked by pydantic


def gone() -> Any:
    """Import a module that is not installed."""
    raise ImportError("No module named 'pynvml'")


@pytest.fixture
def job(bench: Bench) -> Job:
    """A person's job."""
    return bench.submit("work", 1)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, 0),
        ("cuda", None, 0),
        ("cuda:1", None, 1),
        ("cuda", "1", 1),
        ("cuda:1", "1,0", 0),
        ("cuda", "GPU-1", 1),
        ("cuda:1", " GPU-1 , 0 ", 0),
    ],
)
def test_the_memory_is_that_of_the_device_the_child_will_use(
    device: str, visible: str | None, expected: int
) -> None:
    """What CUDA_VISIBLE_DEVICES hides or reorders, NVML shows all the same: it is looked up there."""
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    found, problem = GpuMemory(device, env, FakeNvml([3, 5])).read()

    assert (GpuRoom(f"Fake GPU {expected}", (3, 5)[expected], 16 * GIB), "") == (found, problem)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("nvml", "visible", "words"),
    [
        (gone, "0", "not installed: pip install 'feature-sidecar[gpu]'"),
        (FakeNvml(start=fake_nvml.LIBRARY_NOT_FOUND), "0", "does not start: NVML Shared Library"),
        (FakeNvml(start=fake_nvml.DRIVER_NOT_LOADED), "0", "does not start: Driver Not Loaded"),
        (FakeNvml(fault=fake_nvml.GPU_IS_LOST), "0", "does not answer: GPU is lost"),
        (FakeNvml(), "3", "does not answer: Invalid Argument"),
        (FakeNvml(), "GPU-9", "does not answer: Not Found"),
        (FakeNvml(), "", "'' shows no device 0"),
        (FakeNvml(), "-1", "'-1' shows no device 0"),
    ],
)
def test_memory_that_cannot_be_read_is_unknown_and_says_why(
    nvml: Callable[[], Any], visible: str, words: str
) -> None:
    """Whatever NVML raises; where it must be known, nothing starts."""
    found, problem = GpuMemory("cuda", {"CUDA_VISIBLE_DEVICES": visible}, nvml).read()

    assert found is None
    assert words in problem


@pytest.mark.unit
def test_nvml_is_begun_anew_after_it_failed() -> None:
    """A driver that was loaded again answers the next look; a calm one is begun once."""
    nvml = FakeNvml()
    memory = GpuMemory("cuda", {}, nvml)
    memory.read()
    memory.read()
    before = nvml.starts
    nvml.fault = fake_nvml.GPU_IS_LOST
    memory.read()
    nvml.fault = 0

    assert memory.read()[0] is not None
    assert (1, 2, 1) == (before, nvml.starts, nvml.begun)


@pytest.mark.unit
def test_without_nvml_jobs_start_unless_it_is_required(tmp_path: Path) -> None:
    """With auto they do; require stops the start-up, and later holds them back; off and a CPU never ask."""
    lost = FakeNvml(free=[0], fault=fake_nvml.GPU_IS_LOST)
    admission(gone).start()

    assert admission(gone).why_not("j", MODEL) == ""
    with pytest.raises(ConfigError, match=r"jobs\.gpu\.admission require: nvidia-ml-py is not"):
        admission(gone, admission="require").start()
    assert "GPU is lost" in admission(lost, admission="require").why_not("j", MODEL)
    for free in (admission(FakeNvml([0]), admission="off"), admission(FakeNvml([0]), "cpu")):
        free.start()
        assert "" == free.why_not("j", MODEL)


@pytest.mark.unit
@pytest.mark.parametrize("there", [False, True])
def test_auto_asks_only_where_there_is_a_driver(there: bool) -> None:
    """A machine without a GPU is not warned of at every start; to require NVML there is an error."""
    nvml = FakeNvml([0])
    config = JobsConfig(device="auto")
    found = Admission(config, {}, load=nvml, driver_is_there=lambda: there)
    found.start()

    assert there == bool(found.why_not("j", MODEL))
    assert there == bool(nvml.starts)
    with pytest.raises(ConfigError, match="not installed"):
        admission(gone, "auto", admission="require").start()


@pytest.mark.unit
def test_a_job_that_no_gpu_of_this_size_has_room_for_does_not_wait_for_it() -> None:
    """It would for ever, and audits with it; its child ends it, and says what to change."""
    large = admission(FakeNvml([GIB], total=2 * GIB), reserve_bytes=2 * GIB + 1)
    small = admission(FakeNvml([GIB], total=2 * GIB), reserve_bytes=2 * GIB)

    assert "" == large.why_not("j", MODEL)
    assert "1024 MiB are free" in small.why_not("j", MODEL)


@pytest.mark.service
def test_a_job_waits_for_its_own_need_beside_the_reserve(tmp_path: Path, job: Job) -> None:
    """The model's file at first, then what its child said; on the byte it may start."""
    (tmp_path / "w.pt").write_bytes(bytes(1000))
    model, nvml = replace(MODEL, weights=str(tmp_path / "w.pt")), FakeNvml([GIB + 999])
    found = admission(nvml, reserve_bytes=GIB, poll_seconds=7)

    short = found.why_not(job.id, model)
    nvml.free[0] = GIB + 1000
    enough = found.why_not(job.id, model)
    pause = found.hold(job, GPU_MEMORY, 3 * GIB)
    learned = found.why_not(job.id, model)
    other = found.why_not("another", model)
    nvml.free[0] = 4 * GIB

    assert "MiB are free on Fake GPU 0, and it takes 0 MiB beside jobs.gpu.reserve_bytes" in short
    assert ("", 7) == (enough, pause)
    assert "it takes 3072 MiB beside" in learned
    assert "" == other == found.why_not(job.id, model)
    assert {GPU_MEMORY: 1, PRESSURE: 0} == found.counts
    assert GpuRoom("Fake GPU 0", 4 * GIB, 16 * GIB) == found.room


@pytest.mark.service
def test_audits_leave_the_gpu_while_a_person_waits_for_it(bench: Bench) -> None:
    """From being held back until admitted, or gone; an audit that waits itself is nobody's reason."""
    now = 0.0
    nvml = FakeNvml([0])
    found = Admission(
        JobsConfig(device="cuda", gpu={"poll_seconds": 5}), {}, load=nvml, clock=lambda: now
    )
    person, audit = bench.submit("work", 1), bench.submit("work", 2, origin="audit")

    found.hold(audit, GPU_MEMORY, 0)
    nobody = found.held_for()
    found.hold(person, GPU_MEMORY, 0)
    waits = found.held_for()
    nvml.free[0] = 16 * GIB
    found.why_not(person.id, MODEL)
    admitted = found.held_for()
    found.hold(person, GPU_MEMORY, 0)
    now = 16.0  # it never came again: somebody cancelled it

    assert ("", "") == (nobody, admitted)
    assert f"job {person.id} waits for memory of the GPU" == waits
    assert "" == found.held_for()


@pytest.mark.unit
def test_children_number_gpus_as_nvml_does_and_stand_behind_the_server() -> None:
    """Unless somebody says otherwise; nothing of it on a CPU."""
    plain = child_environment(JobsConfig(), {})
    said = child_environment(JobsConfig(), {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})

    assert ("PCI_BUS_ID", "1") == (plain["CUDA_DEVICE_ORDER"], plain["CUDA_MPS_CLIENT_PRIORITY"])
    assert "FASTEST_FIRST" == said["CUDA_DEVICE_ORDER"]
    assert "CUDA_DEVICE_ORDER" not in child_environment(JobsConfig(device="cpu"), {})


@pytest.mark.unit
def test_a_job_that_is_held_back_says_so_in_one_line() -> None:
    """There and back."""
    event = HeldBackEvent("no room", 10)

    assert event == decode_event(encode_event(event))


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Put a stand-in in the place of pynvml; returns what sets the free bytes it shows."""
    place, nvml = tmp_path / "free", FakeNvml()
    module = ModuleType("pynvml")
    for name in dir(nvml):
        if name.startswith(("nvml", "NVML")):
            setattr(module, name, getattr(nvml, name))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setenv("GPU_FREE", str(place))

    def show(count: int) -> None:
        nvml.free[0] = count
        place.write_text(str(count), encoding="ascii")

    return show


SOON = {"device": "cuda", "gpu": {"reserve_bytes": 1 << 20, "poll_seconds": 0.05}}


@pytest.mark.e2e
def test_a_job_waits_in_the_queue_while_the_gpu_is_full(
    bench: Bench, free: Callable[[int], None]
) -> None:
    """No child is started, no attempt is counted, the message says why; with room it is done."""
    free(1000)
    runner = bench.runner(**SOON)
    runner.start()
    job = bench.submit("work", 1)
    wait_until(lambda: runner.admission.counts[GPU_MEMORY] >= 2, "two looks")
    words = "waiting again: 0 MiB are free on Fake GPU 0, and it takes"
    wait_until(lambda: words in bench.queue.get(job.id).message, "its reason")

    free(1 << 30)
    done = bench.ended(job)

    assert (JobState.DONE, 1) == (done.state, done.attempts)


@pytest.mark.e2e
def test_a_job_whose_child_finds_too_little_waits_for_what_it_said(
    bench: Bench, free: Callable[[int], None]
) -> None:
    """The child ends without an attempt counted; NVML is held against its need from then on."""
    free(5 << 20)
    runner = bench.runner(**SOON)
    runner.start()
    job = bench.submit("greedy", 1)
    wait_until(lambda: runner.admission.counts[GPU_MEMORY] >= 3, "three looks")
    wait_until(lambda: "it takes 10 MiB" in bench.queue.get(job.id).message, "its need")

    free(12 << 20)
    done = bench.ended(job)

    assert (JobState.DONE, 1) == (done.state, done.attempts)


@pytest.mark.e2e
def test_an_answer_that_is_there_needs_no_gpu(bench: Bench, free: Callable[[int], None]) -> None:
    """A full GPU keeps nobody from what was made before."""
    free(1 << 30)
    bench.runner(**SOON).start()
    bench.ended(bench.submit("work", 1))
    free(0)

    again = bench.ended(bench.submit("work", 1))

    assert (JobState.DONE, True) == (again.state, again.from_cache)


@pytest.mark.e2e
def test_an_audit_leaves_the_gpu_to_a_person(bench: Bench, free: Callable[[int], None]) -> None:
    """It is put back although a slot is free, stays away while the person waits, and goes on after."""
    free(1 << 30)
    bench.runner(concurrency=2, **SOON).start()
    audit = bench.submit("resumable", 1, asked_priority=Priority.AUDIT)
    wait_until(lambda: bench.queue.get(audit.id).step >= 2, "two steps")

    free(0)
    person = bench.submit("work", 2)
    wait_until(lambda: bench.queue.get(audit.id).state is JobState.QUEUED, "the audit's return")
    waiting = bench.queue.get(audit.id).message
    free(1 << 30)
    done, then = bench.ended(person), bench.ended(audit)

    assert f"waiting again: job {person.id} waits for memory of the GPU" == waiting
    assert (JobState.DONE, JobState.DONE) == (done.state, then.state)


@pytest.mark.e2e
def test_a_gpu_that_ran_out_of_memory_is_tried_again_and_poisons_nothing(
    bench: Bench, free: Callable[[int], None]
) -> None:
    """Every attempt is taken, the error says what it was, and the same may be asked for again."""
    free(1 << 30)
    bench.queue.quarantine._seconds = 3600.0  # noqa: SLF001 - the bench quarantines nothing
    bench.runner(**SOON).start()

    failed = bench.ended(bench.submit("exhausted", 1))

    assert (JobState.FAILED, "SC810", 3) == (failed.state, failed.error_code, failed.attempts)
    assert "CUDA out of memory" in failed.error
    assert bench.submit("exhausted", 1).id != failed.id


@pytest.mark.e2e
def test_the_real_worker_tells_a_full_gpu_from_broken_code(bench: Bench) -> None:
    """A factory raises what torch raises; the error says what to do, and nothing is poisoned."""
    model = ModelConfig(name="m", factory="tiny_model:fill_the_gpu", input=InputConfig(size=32))
    jobs = JobsConfig(python_path=[Path(tiny_model.__file__).parent], threads=1, device="cpu")
    runner = Runner(
        bench.queue, bench.artifacts, {"m": model}.get, jobs, bench.scratch, lambda _: {}
    )
    bench.runners.append(runner)
    runner.start()
    target = Target(FeatureKey.parse("m@r1/2/channel/1"))

    failed = bench.ended(bench.queue.submit(JobRequest((target,), Maximisation(), "cli"), 1.0))

    assert ("SC810", 3) == (failed.error_code, failed.attempts)
    assert "raise jobs.gpu.memory_fraction where that is the limit" in failed.error


@pytest.mark.unit
@pytest.mark.parametrize("lasting", [False, True])
def test_the_worker_waits_for_room_or_refuses_what_never_fits(
    lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that may fit later is held back and told of; one that never will is refused in words."""
    short = Shortage("no room", 7, lasting)
    monkeypatch.setattr(visualise, "shortage", lambda *_: short)

    def plan(*_: object) -> None:
        model = SimpleNamespace(device="cuda")
        worker._wait_for_room(model, 5, visualise.Share())  # noqa: SLF001 # type: ignore[arg-type]

    monkeypatch.setattr(worker, "_work", plan)
    read, write = os.pipe()
    worker._run(SimpleNamespace(), write)  # noqa: SLF001 # type: ignore[arg-type]  # of no job
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        (event,) = [decode_event(line) for line in pipe]

    refused = FailureEvent("SC207", "no room", retry=False)
    assert (refused if lasting else HeldBackEvent("no room", 7)) == event


@pytest.mark.service
def test_a_deadline_says_what_a_held_job_waited_for(bench: Bench) -> None:
    """The reason is kept as its message, so whoever fails it can tell."""
    queue: JobQueue = bench.queue
    job = queue.submit(request("work", 1, deadline=100.0), 1.0)
    queue.claim("me", 2.0)
    queue.release(job.id, "me", 3.0, "0 MiB are free", pause=50.0)

    early = queue.claim("me", 52.0)
    queue.fail_overdue(101.0, lambda late: late.message)

    assert early is None
    assert "waiting again: 0 MiB are free" in queue.get(job.id).error
