"""An HTTP server on loopback, and what it serves in place of the publishers: a suite, a small CIFAR-100."""

import contextlib
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torchvision import datasets

from tests.support.configs import small_config, write_config


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; can cut connections and ignore Range."""

    files: dict[str, bytes]
    breaks_after: int  # bytes of a response, then the connection is cut; 0: never
    honours_range: bool
    ranges: list[str]

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET."""

    server: Server

    def do_GET(self) -> None:
        """Send a file or what is left of it."""
        self.server.ranges.append(self.headers.get("Range", ""))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if self.server.honours_range and (header := self.headers.get("Range")):
            start = int(header.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        with contextlib.suppress(BrokenPipeError):  # torchvision asks once only to follow redirects
            self.wfile.write(rest[: self.server.breaks_after] if self.server.breaks_after else rest)

    def log_message(self, *args: object) -> None:
        """Be silent."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Context manager: a server on loopback."""
    running = Server(("127.0.0.1", 0), Handler)
    running.files, running.breaks_after, running.honours_range, running.ranges = {}, 0, True, []
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def npy(array: np.ndarray) -> bytes:
    """Return an array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_challenge(config: Path, root: Path, server: Server) -> None:
    """Write a config like the challenge's: a server's suite of three files, two severities, five images a block."""
    values = small_config(root)
    values["competition"]["suite"] = {
        "source": "distortion_files", "path": "ood-test", "base_address": server.address, "files": 3, "severities": 2,
        "images_per_block": 5,
    }  # fmt: skip
    write_config(config, values)
    generator = np.random.default_rng(1)
    for number in range(3):
        images = generator.integers(0, 256, (10, 32, 32, 3), np.uint8)
        server.files[f"/distortion{number:02d}.npy"] = npy(images)


def cifar100_archive(train: int = 200) -> tuple[bytes, dict[str, bytes]]:
    """Return a small CIFAR-100 in its published python layout, as .tar.gz and as files, with all classes."""
    generator = np.random.default_rng(2)
    names = [f"class{number}" for number in range(100)]

    def batch(count: int) -> bytes:
        pixels = generator.integers(0, 256, (count, 3072), np.uint8)
        fine = [number % 100 for number in range(count)]
        return pickle.dumps({"data": pixels, "fine_labels": fine, "coarse_labels": fine}, protocol=4)

    files = {"train": batch(train), "test": batch(100), "meta": pickle.dumps({"fine_label_names": names}, protocol=4)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue(), files


def publish_cifar100(archive: bytes, files: Mapping[str, bytes]) -> None:
    """Let torchvision, for the rest of this process, expect these checksums of CIFAR-100."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    published = datasets.CIFAR100
    published.tgz_md5 = hashlib.md5(archive).hexdigest()
    published.train_list, published.test_list = [["train", sums["train"]]], [["test", sums["test"]]]
    published.meta = {**published.meta, "md5": sums["meta"]}
