"""`estimate`: what a run would cost."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from train.__main__ import main
from train.config import Config
from train.ds_config import load_ds_config
from train.estimate.activations import Activations, Saved, _measured, measure_activations
from train.estimate.communication import Links, seconds, traffic
from train.estimate.memory import Model, memory
from train.estimate.plan import FILES, count_parameters
from train.objectives import build_objective
from train.vocabulary import Vocabulary

ROOT = Path(__file__).parents[3]
TINY = [
    "data.sequence_length=32",
    "model.encoder={hidden_size: 32, num_hidden_layers: 5, num_attention_heads: 2, intermediate_size: 64}",
    "model.decoder={num_hidden_layers: 3}",
    "batch.global_batch_size=1024",
    "batch.micro_batch_size=8",
    "run.steps=1000",
    "schedule.warmup_steps=10",
]


def make_config(name="mlm", family="bert", every=1, file="zero2", **engine):
    encoder = {"model_type": family, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    encoder |= {"intermediate_size": 64, "max_position_embeddings": 64}
    model = {"encoder": encoder, "decoder": {"num_hidden_layers": 3}, "gradient_checkpointing_every": every}
    return Config.model_validate(
        {
            "data": {"path": "unused", "sequence_length": 64},
            "model": model,
            "objective": {"name": name},
            "batch": {"global_batch_size": 64, "micro_batch_size": 4},
            "engine": {"ds_config": str(ROOT / f"ds_configs/{file}.json"), **engine},
        }
    )


@pytest.fixture
def estimated(capsys):
    """A function that gives the JSON of a command."""

    def run(*arguments):
        assert main(["estimate", str(ROOT / "configs/bertmae-base.yaml"), *TINY, *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("name", "family"), [("joint", "bert"), ("mlm", "modernbert"), ("span-corruption", "eurobert")]
)
def test_activations_of_all_layers_are_those_of_few(name, family):
    """Reference: the same count on a model that has all its layers, kept, and recomputed every one and every second."""
    config = make_config(name, family)
    found = measure_activations(config)
    whole, again = (_measured(config, 5, 3, again=again) for again in (False, True))
    assert found.kept.elements == pytest.approx(whole.elements, rel=0.01)
    assert found.recomputed.elements == pytest.approx(again.elements, rel=0.01)
    assert found.kept.dropped == pytest.approx(whole.dropped, rel=0.01)
    second = measure_activations(make_config(name, family, every=2))
    assert again.elements < second.recomputed.elements < whole.elements
    assert second.kept == found.kept


def test_a_layer_of_bert_keeps_what_its_formula_says():
    """Reference: by hand, a token and channel of BERT's layer in bf16 on a GPU: queries, keys, values, mixture and its
    copy, two inputs of layer norms and of the feed-forward network, its own two of four times the width, two masks."""
    config = make_config()
    layer = _measured(config, 3, 1, again=False).plus(_measured(config, 2, 1, again=False), -1)
    width, inner = 32, 64
    by_hand = 2 * (9 * width + 2 * inner) + 2 * width
    assert layer.bytes(2, "cuda") == pytest.approx(by_hand, rel=0.05)


def test_dropout_is_counted_in_bytes_on_a_gpu():
    """Reference: by hand."""
    saved = Saved(elements=10, dropped=4, other=3, widest=5)
    assert (saved.bytes(2, "cuda"), saved.bytes(4, "cpu")) == (2 * 6 + 4 + 3, 4 * 10 + 3)


def model_of(parameters):
    nothing = Saved(0, 0, 0, 0)
    return Model(parameters, 1, 1, Activations(nothing, nothing, nothing), 1)


@pytest.mark.parametrize("file", FILES)
def test_memory_falls_with_the_devices_as_the_stage_says(file):
    """Reference: the ZeRO paper's table (Rajbhandari et al. 2020, figure 1): of 4 devices each has a quarter of what a
    stage divides, and 12 bytes a parameter of AdamW's state in all."""
    precision = "fp32" if file == "zero0" else "bf16"
    config = make_config(file=file, precision=precision)
    count = 4_000_000_000
    one, four = (
        memory(config, load_ds_config(config, devices), model_of(count), devices, 4, accumulates=False)
        for devices in (1, 4)
    )
    state = one.optimizer + one.host
    assert state >= {"zero0": 8}.get(file, 12) * count
    if file != "zero0":
        assert four.optimizer + four.host == pytest.approx(state / 4, abs=100)  # beside a buffer of the largest
    assert (four.weights < one.weights) == (file in ("zero3", "zero3-offload"))
    assert (one.host > 0) == ("offload" in file)


def test_a_ring_sends_what_it_has_to():
    """Reference: a ring played step by step: each of 4 devices sends a quarter of the gradients 3 times to add them up,
    and 3 times to spread the sums."""
    config = make_config(file="zero0", precision="fp32")
    parameters, devices = 1000, 4
    sums = np.arange(devices * devices).reshape(devices, devices).astype(float)  # [device, quarter]
    total, moved = sums.sum(0), 0.0
    for step in range(devices - 1):
        for device in range(devices):
            quarter = (device - step) % devices
            sums[(device + 1) % devices, quarter] += sums[device, quarter]
            moved += parameters / devices * 4
    assert [sums[(quarter - 1) % devices, quarter] for quarter in range(devices)] == total.tolist()
    sent = traffic(config, load_ds_config(config, devices), parameters, devices, 4)
    assert sent.reduced == pytest.approx(2 * moved / devices)
    assert sent.gathered == 0


def test_stages_2_and_3_send_at_every_pass_and_one_device_sends_nothing():
    """Reference: a step of one pass."""
    for file in ("zero2", "zero3"):
        config = make_config(file=file)
        ds_config = load_ds_config(config, 4)
        one, three = (traffic(config, ds_config, 10**6, 4, passes) for passes in (1, 3))
        assert three.reduced == 3 * one.reduced
    assert traffic(config, ds_config, 10**6, 1, 3).total == 0
    assert seconds(one, Links(1e9, 1e9, 8), 1, 1.0) == (0.0, 0.0)


def test_links_between_nodes_count_where_there_are_several():
    """Reference: the slower link decides once the devices leave a node."""
    config = make_config()
    sent = traffic(config, load_ds_config(config, 8), 10**9, 8, 1)
    inside, _ = seconds(sent, Links(400e9, 50e9, 8), 8, 1.0)
    outside, _ = seconds(sent, Links(400e9, 50e9, 4), 8, 1.0)
    assert outside == pytest.approx(8 * inside, rel=0.1)


@pytest.mark.parametrize("name", ["mlm", "joint", "retromae", "span-corruption"])
def test_parameters_are_those_of_the_model_each_counted_once(name):
    """Reference: the real module."""
    config = make_config(name)
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    torch.manual_seed(0)
    objective = build_objective(config, Vocabulary(1000, special, np.arange(5, 1000), 5, 1.0))
    counts = count_parameters(config, 1000)
    assert counts["total"] == sum(parameter.numel() for parameter in objective.parameters())
    assert counts["encoder"] + counts["decoder"] + counts["heads"] == counts["total"]
    assert (counts["decoder"] > 0) == (name != "mlm")


def test_the_days_follow_from_arithmetic_and_communication(estimated):
    """Reference: the numbers of the answer itself; a device alone takes twice the time at half the MFU."""
    found = estimated("--gpus", "16", "--gpu", "A100-SXM4-80GB", "--vocab-size", "1000")
    run = found["run"]
    assert run["tokens"] == 1000 * 1024 * 32
    assert run["arithmetic_seconds"] == pytest.approx(
        found["flops_per_token"] * 1024 * 32 / (16 * 0.4 * 312e12), rel=1e-6
    )
    assert run["days"] == pytest.approx(1000 * run["step_seconds"] / 86400)
    assert run["kilowatt_hours"] == pytest.approx(16 * 0.4 * 24 * run["days"])
    assert [row["gpus"] for row in found["scaling"]] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert all(
        row["micro_batch_size"] * row["gradient_accumulation_steps"] * row["gpus"] == 1024 for row in found["scaling"]
    )
    half = estimated("--gpus", "16", "--gpu", "A100", "--mfu", "0.2", "--vocab-size", "1000")
    assert half["run"]["arithmetic_seconds"] == pytest.approx(2 * run["arithmetic_seconds"])


def test_the_suggested_micro_batch_fits_and_divides(estimated):
    """Reference: the memory that the answer itself tells for it, and for the next larger one."""
    rows = ["data.sequence_length=512", "batch.global_batch_size=65536", "engine.precision=fp16"]
    on_t4 = ("--gpus", "1", "--gpu", "T4")
    found = estimated(*rows, *on_t4)
    most = next(row for row in found["memory"] if row["ds_config"] == "zero2")["recomputed"]["largest_micro_batch_size"]
    assert found["suggested_micro_batch_size"] == 2 ** (most.bit_length() - 1)

    def peak(size):
        answer = estimated(*rows, f"batch.micro_batch_size={size}", *on_t4)
        return next(row for row in answer["memory"] if row["ds_config"] == "zero2")["recomputed"]["peak"]

    suggested = found["suggested_micro_batch_size"]
    assert peak(suggested) <= found["usable_bytes"]
    assert most < 2 * suggested


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "H900"], "--gpu H900: not known; one of GB200, B200"),
        (["--gpu", "V100"], "engine.precision bf16: V100 has none; use fp16 or fp32"),
        (["--gpus", "3"], "batch.global_batch_size 1024 is not divisible"),
        (["engine.ds_config=nowhere.json"], "engine.ds_config nowhere.json: No such file"),
        (["model.pretrained=nowhere"], "model.pretrained nowhere: no config.json"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys):
    """Reference: exit code 2 and the words."""
    assert main(["estimate", str(ROOT / "configs/bertmae-base.yaml"), *TINY, *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_answer_for_people_tells_all_parts(capsys):
    """Reference: the parts that a person asks for, without shards and without a GPU."""
    assert main(["estimate", str(ROOT / "configs/bertmae-base.yaml"), *TINY, "--gpus", "32", "--gpu", "H200"]) == 0
    text = capsys.readouterr().out
    for words in (
        "a vocabulary of 30,522 is assumed",
        "32 x H200 on 4 nodes",
        "zero3-offload-parameters",
        "zero0 is not for this run",
        "Suggestion for zero2: batch.micro_batch_size=",
        "the step waits",
        "billion tokens a day",
        "kWh",
        "\n  1024 ",
    ):
        assert words in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 4, 7])
def test_memory_is_what_a_process_takes(number):
    """Reference: the resident memory of a process that trains; to 15 %. benchmarks/memory.py has all cases."""
    sys.path.append(str(ROOT / "benchmarks"))
    from memory import CASES, compare

    estimated, measured = compare(CASES[number])
    assert estimated == pytest.approx(measured, rel=0.15)
