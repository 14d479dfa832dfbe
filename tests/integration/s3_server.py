"""An S3 server in a process of its own, moto's, that holds a data set."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server(folder: Path, bucket: str, key: str) -> Iterator[int]:
    """The port of a server that has the files of `folder`, but for packing plans, at s3://bucket/key."""
    import s3fs

    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", _SERVER], **options)
    port = int(process.stdout.readline())
    store = s3fs.S3FileSystem(
        endpoint_url=f"http://127.0.0.1:{port}",
        key="a",
        secret="b",  # noqa: S106 (the server takes any)
        s3_additional_kwargs={"ACL": "public-read"},  # for those without credentials
        skip_instance_cache=True,
    )
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
