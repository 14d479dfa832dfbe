"""Owns reads from a remote folder: fsspec's drivers, deadlines, retries, and what went wrong in one line."""

import asyncio
import concurrent.futures
import errno
import importlib
import inspect
import random
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.errors import BertmaeError, DataError, UserError
from train.monitor.logs import log

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_GOOGLE = ("gs", "gcs")
_SLOWEST = 100_000  # bytes a second; an answer slower than this counts as a stall
_WHOLE_FILE_STALLS = 30  # how many times longer than a stall a file of unknown size may take
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_NOT_THERE, _REFUSED, _NO_SUCH_RANGE = (404, 410), (401, 403, 407), 416  # statuses of HTTP
_PUBLIC = "; for a public bucket set FSSPEC_S3_ANON=true"
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


class NotThereError(UserError):
    """The store answers, and has no such bucket or file."""


class RemoteFolder:
    """The files below a URL that fsspec knows. Any number of threads may read at once."""

    def __init__(self, url: str, patience: float, stall: float) -> None:
        """Find the driver; nothing is asked of the store yet.

        A read fails once the store gave no answer for `patience` seconds; one request fails after `stall` seconds
        without a byte. Raises UserError where the driver is not installed or the URL is none.
        """
        self._address, _, self._query = url.partition("?") if _is_http(url) else (url, "", "")
        self._address = self._address.rstrip("/")
        self._patience, self._stall = patience, stall
        self._files, self._root = _open_driver(self._address, stall)
        self._requests: set[concurrent.futures.Future[Any]] = set()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._away_since: float | None = None

    def name(self, file: str) -> str:
        """What messages call a file: its URL without what may be a secret (a signature, a password)."""
        user, at, _ = urlsplit(self._address).netloc.rpartition("@")
        return f"{self._address.replace(user + at, '', 1)}/{file}"

    def read(self, file: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from byte `start`, or the whole file; errors, stalls and short answers are tried again.

        Raises NotThereError for what does not exist, DataError for a file that ends before start + length, UserError
        for what is refused, for a server that ignores ranges, and for a store that is away longer than `patience`.
        """
        once = partial(self._whole, file) if length is None else partial(self._part, file, start, length)
        return self._retried(file, once)

    def close(self) -> None:
        """Cut off the requests under way and the pauses; what reads now gets a ValueError."""
        self._closed.set()
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            request.cancel()
        self._files = None  # with it go its connections

    def _retried(self, file: str, once: Callable[[], bytes]) -> bytes:
        began, failures = time.monotonic(), 0
        while True:
            try:
                content = once()
            except BertmaeError:
                raise
            except Exception as error:  # noqa: BLE001 - each driver raises its own kinds
                self._check_open()
                self._explain(file, error)
                failures += 1
                self._pause(file, failures, began, _reason(error))
            else:
                self._answered()
                return content

    def _whole(self, file: str) -> bytes:
        return bytes(self._request("cat_file", file, self._stall * _WHOLE_FILE_STALLS))

    def _part(self, file: str, start: int, length: int) -> bytes:
        seconds = self._stall + length / _SLOWEST
        try:
            content = bytes(self._request("cat_file", file, seconds, start=start, end=start + length))
        except Exception as error:
            if _beyond_the_end(error):
                self._explain_length(file, start, length, 0)
            raise
        if len(content) != length:
            self._explain_length(file, start, length, len(content))
        return content

    def _pause(self, file: str, failures: int, began: float, reason: str) -> None:
        """Wait longer after each failure, at random within a half, so that many ranks do not come back at one time."""
        left = began + self._patience - time.monotonic()
        if left <= 0:
            raise UserError(
                f"{self.name(file)}: no answer for {self._patience:.0f} s (last: {reason}); check the network and the "
                "store; the same command goes on from the last checkpoint"
            )
        if failures > 1:  # one failure now and then is how stores are
            self._away(file, reason)
        pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
        self._closed.wait(min(pause, left))
        self._check_open()

    def _request(self, method: str, file: str, seconds: float, **options: Any) -> Any:
        files = self._files
        self._check_open()
        path = f"{self._root}/{file}" + (f"?{self._query}" if self._query else "")
        if not files.async_impl:
            return getattr(files, method)(path, **options)
        # Not through fsspec's blocking methods: what they wait for nobody can call off.
        return self._awaited(getattr(files, f"_{method}")(path, **options), files.loop, seconds)

    def _awaited(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, seconds: float) -> Any:
        request = asyncio.run_coroutine_threadsafe(work, loop)
        with self._lock:
            self._requests.add(request)
        try:
            self._check_open()
            return request.result(seconds)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no whole answer within {seconds:.0f} s") from error
        finally:
            request.cancel()
            with self._lock:
                self._requests.discard(request)

    def _explain(self, file: str, error: Exception) -> None:
        """Raise for what no second attempt would mend."""
        status = _status(error)
        if isinstance(error, FileNotFoundError) or status in _NOT_THERE:
            raise NotThereError(f"{self.name(file)}: the store has no such file; check the address") from error
        certificate = _certificate_error(error)
        if certificate:
            raise UserError(
                f"{self.name(file)}: the server's certificate is not trusted ({certificate}); set SSL_CERT_FILE (for "
                "s3: AWS_CA_BUNDLE) to the file with your authority's certificate"
            ) from error
        kind = type(error).__name__
        forbidden = str(error).startswith("Forbidden: ")  # what gcsfs makes of a 403
        if isinstance(error, PermissionError) or forbidden or status in _REFUSED or kind in _NO_CREDENTIALS:
            raise UserError(
                f"{self.name(file)}: the store refuses to give it ({_reason(error)}); check the credentials and their "
                f"permission to read{_PUBLIC if kind == 'NoCredentialsError' else ''}"
            ) from error

    def _explain_length(self, file: str, start: int, wanted: int, found: int) -> None:
        """Raise DataError or UserError for an answer that will always have this length, else OSError: try again."""
        if found > wanted:
            raise UserError(
                f"{self.name(file)}: the server ignores ranges and sends whole files; use one that does not"
            )
        size = self._request("info", file, self._stall)["size"]
        if size is not None and size < start + wanted:
            raise DataError(f"{self.name(file)}: ends at byte {size:,}, expected {start + wanted:,}; upload it again")
        raise OSError(f"{found:,} of {wanted:,} bytes")

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ValueError(f"{self._address} is closed")

    def _away(self, file: str, reason: str) -> None:
        with self._lock:
            known, self._away_since = self._away_since is not None, self._away_since or time.monotonic()
        if not known:
            log.warning("%s: no answer (%s); trying again for up to %.0f s", self.name(file), reason, self._patience)

    def _answered(self) -> None:
        if self._away_since is not None:
            with self._lock:
                since, self._away_since = self._away_since, None
            if since is not None:
                log.info("%s: answers again after %.0f s", self.name(""), time.monotonic() - since)


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _open_driver(address: str, stall: float) -> tuple[Any, str]:
    """fsspec's file system for `address`, and the folder's path in it."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    protocol = address.partition("://")[0]
    try:
        options = {"skip_instance_cache": True, **_driver_options(protocol, stall)}
        files, root = _open_google(address, options) if protocol in _GOOGLE else url_to_fs(address, **options)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        way_out = f"pip install {package}" if package else error
        raise UserError(f"{address}: reading {protocol}:// needs a package that is not installed: {way_out}") from error
    except ValueError as error:
        raise UserError(f"{address}: no address of a store: {error}") from error
    return files, root.rstrip("/")


def _open_google(address: str, options: dict[str, Any]) -> tuple[Any, str]:
    """gcsfs's plain class: what it chooses by itself may ask by gRPC for a minute what kind of bucket it is."""
    driver = importlib.import_module("gcsfs.core").GCSFileSystem
    files = driver(**options)
    # Without its own repetitions, which last half a minute and end in a traceback on the screen.
    files._request = partial(inspect.unwrap(driver._request), files)
    return files, driver._strip_protocol(address)


def _driver_options(protocol: str, stall: float) -> dict[str, Any]:
    """What lets a driver report a failure soon and once: repeating is done here, where it is logged."""
    if protocol in ("s3", "s3a"):
        times = {"connect_timeout": stall, "read_timeout": stall}
        return {"config_kwargs": {**times, "retries": {"total_max_attempts": 1}}}
    if protocol not in ("http", "https", *_GOOGLE):
        return {}
    aiohttp = importlib.import_module("aiohttp")  # there only with the extra "https" or "gs"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
    if protocol in _GOOGLE:
        return {"requests_timeout": timeout}
    # Proxies of the environment count, as they do for s3. A range of a compressed answer is not the file's range.
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}, "headers": {"Accept-Encoding": "identity"}}


def _certificate_error(error: BaseException | None) -> str:
    """What is wrong with a server's certificate, where that is what drivers wrapped, else nothing."""
    while error is not None:
        found = getattr(error, "certificate_error", error)  # aiohttp keeps it there
        if isinstance(found, ssl.SSLCertVerificationError):
            return found.verify_message
        error = error.__cause__ or error.__context__
    return ""


def _status(error: Exception) -> int | None:
    """The status of HTTP that an error stands for: aiohttp and gcsfs call it differently."""
    return getattr(error, "status", None) or getattr(error, "code", None)


def _beyond_the_end(error: Exception) -> bool:
    """Whether the store may have said that the range begins behind the last byte; s3fs makes EINVAL of it."""
    return _status(error) == _NO_SUCH_RANGE or getattr(error, "errno", None) == errno.EINVAL


def _reason(error: Exception) -> str:
    """One line; without the addresses that some drivers put in, which may hold a signature."""
    status = getattr(error, "status", None)
    if status is not None:
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    return " ".join(str(error).split())[:200] or type(error).__name__
