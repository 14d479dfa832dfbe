"""WebDatasets without our manifest: what others write is read, and no damage passes as the end of an archive."""

import gzip
import io
import json
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import webdataset as wds

from data_pipeline.__main__ import main
from data_pipeline.checks.checking import SHOWN_PROBLEMS
from data_pipeline.checks.foreign import check_shards, foreign_shards, sample_name
from data_pipeline.checks.tars import walk

RECORD = 512
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def npy(array):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def random_samples(number, seed=0):
    """Samples as webdataset writes them: nested keys, ids, some JSON and text."""
    rng = np.random.default_rng(seed)
    for n in range(number):
        ids = rng.integers(5, 40_000, rng.integers(1, 300)).astype([np.uint16, np.int64][seed % 2])
        yield {"__key__": f"part/{n:06d}", "ids.npy": ids, "json": {"n": n}, "txt": f"text {n}"}


def write_with_webdataset(folder, samples, **options):
    """Real ShardWriter output, 20 samples a shard; the paths."""
    folder.mkdir(exist_ok=True)
    with wds.ShardWriter(str(folder / "shard-%06d.tar"), maxcount=20, verbose=0, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return sorted(folder.iterdir())


def write_tar(path, members, mode="w", form=tarfile.USTAR_FORMAT):
    """A tar of (name, content) by Python's tarfile; content None makes a folder."""
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def checked(path):
    [shard] = check_shards([path], 1, "test")
    return shard


def headers(content):
    """Where tarfile, which reads sound archives well, finds members: [(header position, end with padding)]."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(m.offset_data - RECORD, m.offset_data + -(-m.size // RECORD) * RECORD) for m in tar]


@pytest.mark.parametrize("options", [{}, {"compress": True}, {"mtime": 0.5}])
def test_what_webdataset_writes_is_read_as_webdataset_reads_it(tmp_path, options):
    """Reference: webdataset's own reader and decoder, over shards of ShardWriter, also compressed ones named .tar."""
    paths = write_with_webdataset(tmp_path / "set", random_samples(50), **options)
    assert foreign_shards(tmp_path / "set") == paths
    found = list(check_shards(paths, 2, "test"))
    assert [shard.problems for shard in found] == [[]] * 3
    for path, shard in zip(paths, found, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            url = f"pipe:gzip -dc {path}" if "compress" in options else str(path)
            samples = list(wds.WebDataset(url, shardshuffle=False).decode())
        ids = np.concatenate([sample["ids.npy"] for sample in samples])
        kind = shard.kinds["ids.npy"]
        assert (shard.samples, shard.without_key) == (len(samples), 0)
        assert (kind.elements, kind.low, kind.high, kind.dtypes) == (ids.size, ids.min(), ids.max(), {"uint16"})
        assert sorted(shard.kinds) == ["ids.npy", "json", "txt"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_others_write_is_read_as_tarfile_reads_it(tmp_path, form, mode):
    """Reference: tarfile, in every format it writes: folders, names over 100 and over 256 bytes, other alphabets."""
    long = [] if form == "ustar" else [("d/" * 150 + "中" * 90 + ".ids.npy", npy(np.arange(3)))]
    members = [
        ("d", None),
        ("d/a.ids.npy", npy(np.arange(5))),
        ("é/" + "n" * 80 + ".ids.npy", npy(np.arange(700))),
        *long,
    ]
    path = write_tar(tmp_path / "x.tar.gz", members, mode, FORMATS[form])
    lines = []
    found = list(walk(path, lambda name: True, lines.append))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.size, tar.extractfile(m).read()) for m in tar if m.isfile()]
    assert [(m.name, m.size, m.content) for m in found] == expected
    assert lines == []
    assert checked(path).problems == []


def test_sample_names_are_split_as_webdataset_splits_them():
    """Reference: webdataset's base_plus_ext."""
    from webdataset.tariterators import base_plus_ext

    for name in (
        "a.npy",
        "x.y/a.b.npy",
        "./a/b.ids.npy",
        "a",
        "d/a",
        ".hidden",
        "d/.hidden",
        "a.",
        "a..b",
        "中/文.txt",
    ):
        key, kind = base_plus_ext(name)
        assert sample_name(name) == ((key, kind) if kind else None), name
    assert sample_name("a.Ids.NPY") == ("a", "ids.npy")
    assert sample_name("__meta__/a.npy") is None


@pytest.mark.parametrize("options", [{}, {"mtime": 1}])
def test_a_flip_anywhere_in_a_header_costs_one_member_and_is_named(tmp_path, options):
    """Reference: the places of the headers; with a PAX header before each member (a float mtime) and without."""
    [path] = write_with_webdataset(tmp_path / "set", random_samples(12), **options)
    content = path.read_bytes()
    places, rng = headers(content), np.random.default_rng(3)
    for number in rng.permutation(len(places))[:25].tolist():
        start, end = places[number]
        damaged = bytearray(content)
        position = int(rng.choice([*range(148), *range(156, RECORD)]))  # not the checksum's own unused last bytes
        damaged[start + position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        lines = []
        found = [member.position for member in walk(path, lambda name: False, lines.append)]
        assert found == [s for s, _ in places if s != start]
        [line] = lines
        if number + 1 < len(places):
            assert f"{path}: broken header at byte {start:,}: what stands before byte {end:,} is lost" in line
        else:
            assert f"{path}: broken header at byte {start:,}: everything behind it" in line


@pytest.mark.parametrize("form", FORMATS)
def test_no_damage_raises_or_hangs(tmp_path, form):
    """Random bytes in random places, zeros, cuts, doubled parts, in tars of each format, with headers the first aim."""
    rng = np.random.default_rng(6)
    names = ["a.ids.npy", "d/" * (40 if form == "ustar" else 90) + "b.ids.npy", "c.json"]
    contents = [npy(np.arange(50)), npy(np.arange(9, dtype=np.uint16)), b"{}"]
    path = write_tar(tmp_path / "x.tar", zip(names, contents, strict=True), form=FORMATS[form])
    content = path.read_bytes()[:8192]
    for _ in range(300):
        damaged = bytearray(content)
        start, size = int(rng.integers(len(content) // RECORD)) * RECORD, int(rng.choice([1, 4, 40, 700]))
        start += int(rng.integers(RECORD))
        choice = rng.integers(4)
        damaged[start : start + size] = [rng.bytes(size), bytes(size), b"", bytes(damaged[start : start + size]) * 2][
            choice
        ]
        if rng.random() < 0.5:  # a header that is wrong and has a right checksum
            record = start // RECORD * RECORD
            header = damaged[record : record + RECORD]
            total = sum(header) - sum(header[148:156]) + 8 * 32
            damaged[record + 148 : record + 156] = b"%06o\0 " % total
        path.write_bytes(damaged)
        checked(path)


@pytest.mark.parametrize("compress", [False, True])
def test_a_cut_anywhere_is_named(tmp_path, compress):
    """Every cut that takes a byte of a member or of the two end-of-archive records, in plain and gzip shards."""
    [path] = write_with_webdataset(tmp_path / "set", random_samples(12), compress=compress)
    content = path.read_bytes()
    end = len(content) if compress else headers(content)[-1][1] + 2 * RECORD
    for size in [*range(end - 8, end), end - RECORD, *np.random.default_rng(4).integers(1, end, 40).tolist()]:
        path.write_bytes(content[:size])
        assert checked(path).problems, size
    path.write_bytes(content[:end])
    assert checked(path).problems == []


def test_a_hole_of_zeros_and_a_second_archive_are_no_end(tmp_path):
    """Both make every usual reader stop without an error; the byte where data go on is named."""
    [path] = write_with_webdataset(tmp_path / "set", random_samples(12))
    content = path.read_bytes()
    start = headers(content)[9][0]
    path.write_bytes(content[:start] + bytes(4096) + content[start + 4096 :])
    [line] = [line for line in checked(path).problems if "zeros" in line]
    assert f"zeros at byte {start:,} end the archive for its readers, but data follow at byte " in line
    path.write_bytes(content + content)
    [line] = checked(path).problems
    assert line.endswith(f"but data follow at byte {len(content):,}")


def test_a_flipped_bit_in_gzip_is_named(tmp_path):
    """gzip's own checksum finds what a plain tar cannot."""
    [path] = write_with_webdataset(tmp_path / "set", random_samples(12), compress=True)
    content = path.read_bytes()
    for position in np.random.default_rng(5).integers(20, len(content), 10).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 8
        path.write_bytes(damaged)
        assert any("gzip" in line or "header" in line or "truncated" in line for line in checked(path).problems)


BAD = {
    "float32": (npy(np.ones(3, np.float32)), "float32[3], not a flat array of integers"),
    "matrix": (npy(np.ones((2, 3), int)), "int64[2, 3], not a flat array of integers"),
    "negative": (npy(np.array([4, -100, 3])), "negative: -100 at position 1"),
    "cut": (npy(np.arange(100))[:-8], "no readable array"),
    "trailing": (npy(np.arange(100)) + b"xx", "2 bytes follow the array"),
    "objects": (npy(np.array([{}], object)), "no readable array: Object arrays cannot be loaded"),
    "huge": (npy(np.arange(3)).replace(b"(3,), }              ", b"(3000000000000000,), "), "no readable array"),
    "text": (b"hello", "no readable array"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_array_that_is_no_ids_is_named_and_the_rest_is_read(tmp_path, case):
    """One bad member among good ones."""
    content, words = BAD[case]
    members = [("a.ids.npy", npy(np.arange(5))), ("b.ids.npy", content), ("c.ids.npy", npy(np.arange(9)))]
    shard = checked(write_tar(tmp_path / "x.tar", members))
    [line] = shard.problems
    assert f"'b.ids.npy' at byte 1,024: {words}" in line
    assert (shard.samples, shard.kinds["ids.npy"].high) == (3, 8)


def test_samples_that_do_not_fit_together_are_named(tmp_path):
    """Missing members, a key in two places, a member twice, JSON that is none, an empty archive; 20 lines at most."""
    ids = npy(np.arange(3))
    members = [("a.npy", ids), ("a.json", b"{}"), ("b.npy", ids), ("b.json", b"{"), ("c.npy", ids), ("a.npy", ids)]
    members += [("a.json", b"1"), ("d.npy", ids), ("d.npy", ids), ("d.json", b"[]"), ("README", b"x")]
    shard = checked(write_tar(tmp_path / "x.tar", members))
    expected = ["'b.json' at byte 3,072: not JSON", "'c' has .npy, the first one .json .npy", "'a' stands here twice"]
    expected += ["'d' has .npy twice"]
    assert len(shard.problems) == len(expected)
    assert all(words in line for words, line in zip(expected, shard.problems, strict=True)), shard.problems
    assert shard.without_key == 1
    assert checked(write_tar(tmp_path / "empty.tar", [])).problems == [f"{tmp_path / 'empty.tar'}: no samples"]
    (tmp_path / "none.tar").touch()
    assert "the file is empty" in checked(tmp_path / "none.tar").problems[0]
    (tmp_path / "text.tar").write_text("no tar at all\n" * 100)
    assert "no tar archive" in checked(tmp_path / "text.tar").problems[0]
    many = checked(write_tar(tmp_path / "many.tar", [(f"{n}.json", b"{") for n in range(50)]))
    assert (len(many.problems), many.more_problems) == (SHOWN_PROBLEMS, 50 - SHOWN_PROBLEMS)


def test_a_pickle_is_named_and_never_opened(tmp_path, capsys):
    """Its code would leave a file; exit 0, for nothing is damaged."""
    trace = tmp_path / "trace"

    class Bomb:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    members = [(f"a.{kind}", pickle.dumps(Bomb())) for kind in ("pyd", "pickle", "pth")] + [
        ("a.npy", npy(np.arange(3)))
    ]
    path = write_tar(tmp_path / "x.tar", members)
    assert main(["verify", str(path)]) == 0
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    for kind in ("pyd", "pickle", "pth"):
        assert f".{kind} 1 x, 0.00 MB, not opened: pickle may run code" in out
    assert not trace.exists()


def test_the_commands_tell_what_they_see_and_what_they_cannot(tmp_path, capsys, vocab_txt):
    """verify: a line a shard, closing line, exit 3 for damage with the same lines for any workers; inspect: as text."""
    vocabulary = vocab_txt.read_text(encoding="utf-8").splitlines()
    words = ["the", "cat", "run", "##s"]
    ids = [max(i for i, token in enumerate(vocabulary) if token == word) for word in words]
    samples = [{"__key__": f"{n}", "npy": np.array([*ids, 9999])} for n in range(30)]
    first, second = write_with_webdataset(tmp_path / "set", samples)
    assert main(["verify", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert f"{first}: 20 samples, " in out
    assert "As far as can be seen without a manifest: 2 shards, 30 samples, " in out
    assert "Not checked: checksums" in out
    assert main(["inspect", str(tmp_path / "set"), "--tokenizer", str(vocab_txt), "--documents", "2"]) == 0
    out = capsys.readouterr().out
    assert f"Kind .npy 30 x, 0.01 MB, int64, 150 elements, {min(ids)} to 9,999." in out
    assert out.count("the cat run·s <9999>") == 2
    assert main(["inspect", str(second), "--documents", "1"]) == 0
    assert f".npy: {' '.join(str(n) for n in samples[0]['npy'])}" in capsys.readouterr().out
    second.write_bytes(second.read_bytes()[:3000])
    seen = []
    for workers in ("1", "2"):
        assert main(["verify", str(tmp_path / "set"), "--workers", workers]) == 3
        seen.append(capsys.readouterr())
    assert seen[0] == seen[1]
    assert "As far" not in seen[0].out
    assert f"{second}: truncated: " in seen[0].err


def test_a_shard_of_ours_alone_is_shown_by_its_documents(tmp_path, capsys, vocab_txt):
    """Word bounds come from words.npy, not from ##: here two words of the vocabulary make one."""
    from data_pipeline.shards import ShardWriter, encode_block

    vocabulary = vocab_txt.read_text(encoding="utf-8").splitlines()
    ids = np.array([vocabulary.index(token) for token in ("中", "国", "cat", "the")], np.uint16)
    starts = np.array([True, False, True, True])
    with ShardWriter(tmp_path / "train-000000.tar") as shard:
        shard.write(encode_block(0, ids, np.array([0, 3, 4], np.uint32), starts, "text"), 4, 2)
        shard.finish()
    assert main(["inspect", str(tmp_path), "--tokenizer", str(vocab_txt)]) == 0
    out = capsys.readouterr().out
    assert "--- document 0 ---\n中·国 cat\n\n--- document 1 ---\nthe\n" in out
    assert main(["verify", str(tmp_path)]) == 0
    assert main(["verify", str(tmp_path / "train-000000.tar")]) == 0


def test_a_file_of_another_kind_is_the_users_mistake(tmp_path, capsys):
    """Exit 2 and one line; a folder without shards as before."""
    (tmp_path / "x.json").write_text(json.dumps({}))
    assert main(["verify", str(tmp_path / "x.json")]) == 2
    assert "x.json: a file; give the folder of a data set, or a .tar" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2
    assert "no manifest.json" in capsys.readouterr().err


def test_a_tar_inside_gzip_under_any_name_is_read(tmp_path):
    """The first bytes decide, not the name."""
    path = write_tar(tmp_path / "x.tar", [("a.npy", npy(np.arange(3)))])
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert checked(path).problems == []


def test_a_long_name_belongs_to_one_member_only(tmp_path):
    """With the header behind its PAX name broken, and without: the next members keep their own names."""
    ids = npy(np.arange(3))
    names = ["中" * 50 + ".npy", "b.npy", "c.npy"]
    path = write_tar(tmp_path / "x.tar", [(name, ids) for name in names], form=tarfile.PAX_FORMAT)
    assert [member.name for member in walk(path, lambda name: False, print)] == names
    content = bytearray(path.read_bytes())
    content[headers(content)[0][0]] ^= 1
    path.write_bytes(content)
    assert [member.name for member in walk(path, lambda name: False, lambda line: None)] == names[1:]


def test_shards_that_do_not_fit_together_are_named(tmp_path):
    """Samples of one shard have a member that those of the first have not."""
    ids = npy(np.arange(3))
    paths = [
        write_tar(tmp_path / "a.tar", [("a.npy", ids)]),
        write_tar(tmp_path / "b.tar", [("a.npy", ids), ("a.x", b"")]),
    ]
    assert [shard.problems for shard in check_shards(paths, 1, "test")] == [
        [],
        [f"{paths[1]}: samples of .npy .x, the first shard's .npy"],
    ]
