"""A run under kill -9: every target at every moment of its life, then the same end as undisturbed; a table in Markdown.

    python benchmarks/chaos.py SHARDS [--steps N] [--seed S] [--rounds N] [--output FILE.md]

SHARDS is a folder of `python -m data_pipeline build` with held-out documents, as `make demo` leaves one at
runs/demo/data/shards. The model is tiny, so that nearly all of a run is start-up and checkpoints. Two ranks on the CPU,
fp32, dropout on, a checkpoint every five steps. Nothing is done by hand between two starts.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e")]

from chaos import (  # noqa: E402
    LAST_MOMENTS,
    MOMENTS,
    SETTINGS,
    TARGETS,
    Kill,
    Start,
    differences,
    run_killed,
    run_undisturbed,
    steps_lost,
)
from e2e_commands import TINY  # noqa: E402


def main() -> None:
    """Kill, compare, print the table; exit code 1 where a run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="how often every target dies at every moment")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    options = parser.parse_args()
    words = ["configs/demo.yaml", f"data.path={options.shards.resolve()}", *TINY, *SETTINGS]
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        reference = run_undisturbed(Path(folder) / "undisturbed", words, options.steps)
        runs = kill_all(Path(folder), words, options.steps, all_kills(rng, options.rounds), rng)
        problems = [differences(starts, reference.run) for starts in runs]
    text = table(reference, runs) + "\n" + "".join(f"\nDifferent: {'; '.join(found)}\n" for found in problems if found)
    text += f"\n{sum(not found for found in problems)} of {len(runs)} runs equal the undisturbed one, bit for bit.\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    sys.exit(any(problems))


def all_kills(rng: random.Random, rounds: int) -> list[Kill]:
    """Every target at every moment in random order; then those that wait for the last checkpoint."""
    kills = [Kill(target, moment) for _ in range(rounds) for target in TARGETS for moment in MOMENTS]
    rng.shuffle(kills)
    return kills + [Kill(target, moment) for target in ("rank 0", "everything") for moment in LAST_MOMENTS]


def kill_all(folder: Path, words: list[str], steps: int, kills: list[Kill], rng: random.Random) -> list[list[Start]]:
    """The starts of each run; where one comes to its end the next kills hit another one."""
    runs: list[list[Start]] = []
    while kills:
        starts = run_killed(folder / f"run-{len(runs)}", words, steps, kills, rng)
        runs.append(starts)
        met = len(starts) - 1
        kills = kills[met or 1 :]  # a moment that a whole run did not meet is not waited for again
        print(f"run {len(runs)}: {met} kills, {len(kills)} to come", file=sys.stderr)
    return runs


def table(reference: Start, runs: list[list[Start]]) -> str:
    """A row for each moment, then what all kills together cost."""
    kills = [entry for starts in runs for entry in zip(pairwise(starts), steps_lost(starts), strict=True)]
    lines = ["| killed in | kills | steps lost, most | seconds to the next step | checkpoint under way |"]
    lines.append("|---|---|---|---|---|")
    for moment in MOMENTS | LAST_MOMENTS:
        here = [(start, then, lost) for (start, then), lost in kills if start.kill and start.kill.moment == moment]
        if here:
            found = Counter(start.found for start, _, _ in here)
            words = ", ".join(f"{name} {count}" for name, count in found.most_common())
            seconds = _seconds([then.seconds_to_first_step for _, then, _ in here])
            lines.append(f"| {moment} | {len(here)} | {max(lost for _, _, lost in here)} | {seconds} | {words} |")
    targets = Counter(start.kill.target for (start, _), _ in kills if start.kill)
    starts = [start for starts in runs for start in starts]
    orphans = [start.seconds_to_end for start in starts if start.kill and start.kill.target == "torchrun"]
    ranks = [start.seconds_to_end for start in starts if start.kill and start.kill.target.startswith("rank")]
    return "\n".join(
        [
            *lines,
            "",
            f"{len(kills)} kills ({', '.join(f'{name} {count}' for name, count in targets.items())}), "
            f"{len(starts)} starts of the same command, {len(runs)} runs of {reference.last_step} steps.",
            f"Steps done again: {sum(lost for _, lost in kills)}.",
            f"Seconds from the command to its first step: {_seconds([s.seconds_to_first_step for s in starts])}; "
            f"undisturbed {_seconds([reference.seconds_to_first_step])}.",
            f"Seconds that ranks lived on without torchrun: {_seconds(orphans)}; until the command ended where a rank "
            f"was killed: {_seconds(ranks)}.",
        ]
    )


def _seconds(values: list[float | None]) -> str:
    """Median and most; starts that were killed before have no value."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f}, most {max(known):.1f}" if known else "-"


if __name__ == "__main__":
    main()
