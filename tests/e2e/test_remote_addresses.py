"""A build's shards read through gs:// and https:// by the real command, certificates and all."""

import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_commands import ROOT, command

sys.path.insert(0, str(ROOT / "tests" / "integration"))
from range_server import file_server

AS_MANY_ROWS = 12


def report_of(tiny: list[str], address: object, cache: Path) -> list[str]:
    """What data-report prints, without the address and what it says of the cache."""
    words = [*tiny, "run.steps=100", f"data.path={address}", f"data.cache={cache}", "--rows", AS_MANY_ROWS]
    done = command("train", "data-report", *words)
    assert done.returncode == 0, done.stderr
    lines = [line.replace(str(address), "ADDRESS") for line in done.stdout.splitlines()]
    return [line for line in lines if not line.startswith("Remote blocks are kept in")]


@pytest.fixture(scope="module")
def local_report(tiny, shards, tmp_path_factory) -> list[str]:
    """What the command says of the folder."""
    return report_of(tiny, shards, tmp_path_factory.mktemp("cache"))


def test_shards_behind_gs_are_those_of_the_folder(tiny, shards, local_report, tmp_path, monkeypatch):
    """Reference: the report of the folder, its first rows token by token."""
    pytest.importorskip("gcsfs", reason='needs gcsfs: pip install -e ".[test]"')
    pytest.importorskip("gcp_storage_emulator", reason='needs gcp-storage-emulator: pip install -e ".[test]"')
    from gs_server import gs_server

    with gs_server(shards, "corpus", "sets/one") as port:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        assert report_of(tiny, "gs://corpus/sets/one", tmp_path) == local_report


@pytest.fixture
def https(shards, tmp_path, monkeypatch) -> Iterator[tuple[str, Path]]:
    """(address, file with the certificate of the authority) of a server whose authority nobody knows yet."""
    pytest.importorskip("aiohttp", reason='needs aiohttp: pip install -e ".[test]"')
    trustme = pytest.importorskip("trustme", reason='needs trustme: pip install -e ".[test]"')
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    with file_server(shards, tls=context) as port:
        yield f"https://127.0.0.1:{port}", tmp_path / "authority.pem"


def test_shards_behind_https_are_those_of_the_folder(tiny, local_report, https, tmp_path, monkeypatch):
    """Reference: the report of the folder, its first rows token by token; SSL_CERT_FILE names the authority."""
    address, authority = https
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert report_of(tiny, address, tmp_path / "cache") == local_report
    assert list((tmp_path / "cache" / "blocks").glob("*-*")), "blocks come by ranges, not whole shards"


def test_a_certificate_of_an_unknown_authority_is_one_clear_line(tiny, https, tmp_path):
    """Reference: exit code 2, the address and the way out, at once."""
    address, _ = https
    done = command(
        "train", "data-report", *tiny, f"data.path={address}", f"data.cache={tmp_path / 'cache'}", timeout=50
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"bertmae: {address}/manifest.json: the server's certificate is not trusted (unable to get")
    assert "set SSL_CERT_FILE" in line


def test_a_certificate_for_another_name_is_one_clear_line(tiny, https, tmp_path, monkeypatch):
    """Reference: exit code 2 although the authority is known."""
    address, authority = https
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    other = address.replace("127.0.0.1", "localhost")
    done = command("train", "data-report", *tiny, f"data.path={other}", f"data.cache={tmp_path / 'cache'}", timeout=50)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "the server's certificate is not trusted (Hostname mismatch" in line
