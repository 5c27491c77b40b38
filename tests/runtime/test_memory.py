"""Memory that ran out is recognised whoever says so, and work goes on with fewer images at a time."""

import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp.runtime import memory
from comp.runtime.errors import OutOfMemoryError
from comp.runtime.memory import MicroBatch, is_out_of_memory
from tests.support.commands import Result, assert_refused
from tests.support.memory import ERRORS


@pytest.mark.parametrize("library", ERRORS)
def test_every_library_is_understood(library: str) -> None:
    assert is_out_of_memory(ERRORS[library]())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        ValueError("out of memory"),
        OSError(13, "Permission denied"),
    ],
)
def test_another_error_is_not_about_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        MicroBatch(8).fit(8, lambda size: raise_(error))
    assert caught.value is error


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("count", "first", "most"), [(1, 8, 1), (7, 8, 1), (100, 32, 50), (100, 32, 5), (33, 64, 32)])
def test_parts_cover_all_images_in_order_and_none_is_done_twice(count: int, first: int, most: int) -> None:
    done: list[int] = []

    def work(part: slice) -> int:
        rows = range(part.start, part.stop)
        if len(rows) > most:
            raise MemoryError
        done.extend(rows)
        return len(rows)

    micro_batch = MicroBatch(first)
    sizes = list(micro_batch.parts(count, work))
    assert done == list(range(count))
    assert sum(sizes) == count
    assert max(sizes) <= min(first, most)
    assert micro_batch.has_shrunk == (min(first, count) > most)


def test_what_does_not_fit_at_all_is_one_message_and_the_size_is_tried_again_next_time() -> None:
    micro_batch = MicroBatch(4, smallest=2)
    with pytest.raises(OutOfMemoryError, match=r"with 2 images at a time \(MemoryError\); use a smaller model"):
        micro_batch.fit(4, lambda size: raise_(MemoryError()))
    assert micro_batch.fit(4, lambda size: size) == 4


def test_a_failed_attempt_is_freed_before_the_next() -> None:
    held: list[weakref.ref[np.ndarray]] = []

    def work(size: int) -> int:
        assert all(reference() is None for reference in held)
        large = np.zeros(size)
        held.append(weakref.ref(large))
        if size > 4:
            raise MemoryError
        return size

    assert MicroBatch(16).fit(16, work) == 4
    assert len(held) == 3


def test_free_memory_is_within_the_limit_of_this_process() -> None:
    code = (
        "import resource; from comp.runtime import memory; from pathlib import Path\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))\n"
        "print(memory.free_host_bytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 32 << 20 < int(out) <= 64 << 20
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert memory.free_host_bytes() > 64 << 20


@pytest.mark.parametrize("version", ["2", "1"])
def test_free_memory_is_within_the_limit_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    limit, used, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if version == "2"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (tmp_path / limit).write_text("4000000\n")
    (tmp_path / used).write_text("3000000\n")
    (tmp_path / "memory.stat").write_text(f"anon 2500000\n{cached} 500000\n")
    monkeypatch.setattr(memory, "_CGROUP" if version == "2" else "_CGROUP_1", tmp_path)
    assert memory.free_host_bytes() == 1_500_000
    (tmp_path / limit).write_text("max\n" if version == "2" else "9223372036854771712\n")
    assert memory.free_host_bytes() > 4_000_000


def test_memory_that_runs_out_anywhere_is_one_message(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory = MemoryError("Unable to allocate 3.2 GiB")
    monkeypatch.setattr(np, "memmap", lambda *arguments, **options: raise_(no_memory))
    assert_refused(comp("train", "small.yaml"), "out of memory (Unable to allocate 3.2 GiB)", "smaller images")
