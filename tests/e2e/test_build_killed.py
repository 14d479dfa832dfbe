"""Builds that are killed: whatever dies whenever, the same command goes on and ends with the undisturbed bytes."""

import gzip
import json
import os
import pydoc_data.topics
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from e2e_commands import ROOT, environment

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
OPTIONS = ["--validation-fraction", "0.1", "--dedup", "near", "--dedup-paragraphs", "--shard-blocks", "1"]
KILLS = 22  # in all, over local workers and MPI ranks
MARK = "BERTMAE_TEST_BUILD"

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the processes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Python's help topics with words exchanged, near copies and repeated paragraphs: 4 MB in three files."""
    folder = tmp_path_factory.mktemp("corpus")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    rng = random.Random(0)
    known = sorted({word for paragraph in paragraphs for word in paragraph.lower().split() if word.isalpha()})
    lines = []
    for number, paragraph in enumerate(paragraphs * 6):
        words = [rng.choice(known) if rng.random() < 0.4 else word for word in paragraph.split(" ")]
        again = "\n" + " ".join(rng.choice(paragraphs[:50]).split()) if number % 5 == 0 else ""
        for _ in range(1 + (number % 7 == 0)):
            words[rng.randrange(len(words))] = rng.choice(known)
            lines.append(json.dumps({"text": " ".join(words) + again}) + "\n")
    third = len(lines) // 3
    (folder / "a.jsonl").write_text("".join(lines[:third]))
    (folder / "b.jsonl").write_text("".join(lines[third : 2 * third]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines[2 * third :]).encode()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127))]
    vocabulary += [f"##{chr(code)}" for code in range(97, 123)]
    vocabulary += known
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    return folder


def start_build(corpus, output, launcher, mark):
    command = [*launcher, sys.executable, "-m", "data_pipeline", "build", *OPTIONS, "--output", output]
    command += ["--input", *(corpus / name for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz"))]
    command += ["--tokenizer", corpus / "vocab.txt", "--workers", 2]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment() | {MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background without Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def processes(mark):
    """The pids of the Python processes of a build, found by a variable of their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes()
                if b"python" in line.split(b"\0")[0] and b"resource_tracker" not in line:
                    found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def finished(build):
    """Wait for the end; (exit code, standard error)."""
    _, stderr = build.communicate(timeout=120)
    return build.returncode, stderr


def wait_until_gone(mark):
    deadline = time.monotonic() + 20
    while processes(mark):
        assert time.monotonic() < deadline, "a process of a killed build lives on"
        time.sleep(0.05)


def data_set(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_at_random(corpus, output, launcher, rng, seconds):
    """One call with one kill -9 of one of its processes at some moment; whether it came before the end."""
    mark = uuid.uuid4().hex
    build = start_build(corpus, output, launcher, mark)
    time.sleep(rng.uniform(0.1, seconds))
    targets = processes(mark)
    if targets:
        os.kill(rng.choice(targets), signal.SIGKILL)
    code, stderr = finished(build)
    wait_until_gone(mark)
    assert targets or code == 0
    if code == 2:
        assert stderr.count("\n") == 1, stderr
    else:
        assert "Traceback" not in stderr, stderr
    return bool(targets) and code != 0


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """The data set of a build that nobody disturbs, and how long it takes."""
    output = tmp_path_factory.mktemp("undisturbed") / "set"
    began = time.monotonic()
    assert finished(start_build(corpus, output, [], "undisturbed"))[0] == 0
    return data_set(output), time.monotonic() - began


def go_on_through_kills(corpus, undisturbed, output, launcher, kills, seed):
    expected, seconds = undisturbed
    rng, done = random.Random(seed), 0
    while done < kills:
        done += kill_at_random(corpus, output, launcher, rng, seconds)
        if (output / "manifest.json").exists():  # it came through: the next kills hit another build
            assert finished(start_build(corpus, output, launcher, "last"))[0] == 0
            assert data_set(output) == expected
            shutil.rmtree(output)
    code, stderr = finished(start_build(corpus, output, launcher, "last"))
    assert code == 0, stderr
    assert data_set(output) == expected


def test_the_shards_of_this_corpus_are_worth_killing(undisturbed):
    """Several shards, both splits, near duplicates, repeated paragraphs: each step of a build has work to lose."""
    report = json.loads(undisturbed[0]["report.json"])
    assert report["splits"]["train"]["shards"] >= 2
    assert report["splits"]["validation"]["documents"] > 0
    assert report["documents_dropped"]["near duplicate"] > 100
    assert report["repeated_paragraphs"] > 10


def test_a_build_killed_anywhere_goes_on_to_the_same_bytes(tmp_path, corpus, undisturbed):
    """kill -9 of the parent or a worker at random moments; reference: the undisturbed build."""
    go_on_through_kills(corpus, undisturbed, tmp_path / "set", [], KILLS - 7, seed=1)


@pytest.mark.slow
@pytest.mark.skipif(MPIEXEC is None, reason="needs an MPI runtime (pip install mpich)")
def test_a_build_of_mpi_ranks_killed_anywhere_goes_on_to_the_same_bytes(tmp_path, corpus, undisturbed):
    """kill -9 of a rank takes down the others; three ranks end with the bytes of the local build."""
    go_on_through_kills(corpus, undisturbed, tmp_path / "set", [MPIEXEC, "-n", "3"], 7, seed=2)


def test_a_second_build_into_the_folder_is_refused(tmp_path, corpus):
    """While one writes the other ends at once with one line, and the first is not disturbed."""
    first = start_build(corpus, tmp_path / "set", [], "first")
    while not (tmp_path / "set" / ".build" / "ranges").exists():
        assert first.poll() is None
        time.sleep(0.01)
    code, stderr = finished(start_build(corpus, tmp_path / "set", [], "second"))
    assert (code, stderr.count("\n")) == (2, 1)
    assert "another build is writing here" in stderr
    assert finished(first)[0] == 0


def test_an_interrupted_build_says_so_and_goes_on(tmp_path, corpus, undisturbed):
    """Ctrl-C: one line, exit 130, no process left; the same command ends with the undisturbed bytes."""
    build = start_build(corpus, tmp_path / "set", [], "interrupted")
    while not (tmp_path / "set" / ".build").exists():
        assert build.poll() is None
        time.sleep(0.001)
    build.send_signal(signal.SIGINT)
    assert finished(build) == (130, "interrupted; the same command goes on from here\n")
    wait_until_gone("interrupted")
    assert finished(start_build(corpus, tmp_path / "set", [], "again"))[0] == 0
    assert data_set(tmp_path / "set") == undisturbed[0]
