"""A server that speaks Google Cloud Storage's JSON API, in a process of its own, that holds a data set."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

_SERVER = """
import sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def gs_server(folder: Path, bucket: str, key: str) -> Iterator[int]:
    """The port of a server that has the files of `folder`, but for packing plans, at gs://bucket/key."""
    from gcsfs.core import GCSFileSystem

    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", _SERVER], **options)
    port = int(process.stdout.readline())
    with patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}):
        store = GCSFileSystem(token="anon", project="test", skip_instance_cache=True)  # noqa: S106 (no secret)
        store.mkdir(bucket)
        for path in folder.rglob("*"):
            if path.is_file() and "plans" not in path.parts:
                store.pipe_file(f"{bucket}/{key}/{path.relative_to(folder)}", path.read_bytes())
    try:
        yield port
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
