"""The configuration: what it accepts, what each mistake says, and that it survives being written and read."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from train.config import (
    Batch,
    Config,
    Data,
    LengthAt,
    RowsAt,
    Run,
    Schedule,
    Source,
    WeightsAt,
    decay_steps,
    field_rows,
    global_batch_size,
    gradient_accumulation_steps,
)
from train.config_file import differences, dump_config, load_config
from train.training_data import stretches, token_shares

REPOSITORY = Path(__file__).resolve().parents[3]
PRESETS = sorted((REPOSITORY / "configs").glob("*.yaml"))
DATA = "data: {path: shards}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads YAML text as the file `run.yaml`, so that messages start with a name known to the tests."""
    monkeypatch.chdir(tmp_path)

    def load(text, *overrides):
        Path("run.yaml").write_text(text, encoding="utf-8")
        return load_config(Path("run.yaml"), overrides)

    return load


def message_of(load, *arguments):
    with pytest.raises(UserError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert caught.value.exit_code == 2
    return message


FILE_MISTAKES = {
    # Unknown keys
    "model: {encoder: {hiden_size: 8}}": "unknown key model.encoder.hiden_size (did you mean hidden_size?)",
    "modle: {}": "unknown key modle (did you mean model?)",
    "learning_rate: 1": "unknown key learning_rate (did you mean optimizer.learning_rate?)",
    "run: {zzz: 1}": "unknown key run.zzz (known here: directory, seed, steps, max_minutes)",
    "interval_steps: 1": "unknown key interval_steps (did you mean checkpoint.interval_steps or "
    "validation.interval_steps or probes.interval_steps or logging.interval_steps?)",
    "run.seed: 1": "unknown key run.seed (in a file, write the sections as nested keys; dots are for the command line)",
    "run: {<<: {seed: 1}}": "unknown key run.<< (known here: directory, seed, steps, max_minutes)",
    # Types
    "optimizer: {learning_rate: fast}": "optimizer.learning_rate: 'fast' is not a number",
    "optimizer: {learning_rate: '1e-4'}": "optimizer.learning_rate: '1e-4' is not a number",
    "optimizer: {learning_rate: true}": "optimizer.learning_rate: true is not a number",
    "optimizer: {learning_rate: 1e999}": "optimizer.learning_rate: inf is not a finite number",
    "run: {steps: '8'}": "run.steps: '8' is not a whole number",
    "run: {steps: 8.0}": "run.steps: 8.0 is not a whole number",
    "run: {steps: true}": "run.steps: true is not a whole number",
    "run: {steps: 1_000}": "run.steps: '1_000' is not a whole number",
    "run: {steps: 1:30}": "run.steps: '1:30' is not a whole number",
    "run: {steps: null}": "run.steps: null is not a whole number",
    "run: {directory: 2024}": "run.directory: 2024 is not text (put it in quotes)",
    "run: {directory: ''}": "run.directory: '' is empty",
    "run: 3": "run: 3 is not a section of keys and values",
    "model: {gradient_checkpointing: on}": "model.gradient_checkpointing: 'on' is not true or false",
    "model: {gradient_checkpointing: 1}": "model.gradient_checkpointing: 1 is not true or false",
    "optimizer: {betas: 0.9}": "optimizer.betas: 0.9 is not a list of two numbers",
    "optimizer: {betas: [0.9]}": "optimizer.betas: [0.9] is not a list of two numbers",
    "optimizer: {betas: [0.9, 0.9, 0.9]}": "optimizer.betas: [0.9, 0.9, 0.9] is not a list of two numbers",
    "optimizer: {betas: ['0.9', 0.9]}": "optimizer.betas[0]: '0.9' is not a number",
    "objective: {name: mea}": "objective.name: 'mea' is not one of mlm, mae, latent-mae, joint, retromae, "
    "dupmae, span-corruption (did you mean mae?)",
    "engine: {precision: 16}": "engine.precision: 16 is not one of fp32, bf16, fp16 (did you mean fp16?)",
    # Bounds
    "run: {steps: 0}": "run.steps: 0 is not above 0",
    "data: {path: x, sequence_length: 4}": "data.sequence_length: 4 is below the smallest allowed value, 8",
    "data: {path: x, sequence_length: 9000}": "data.sequence_length: 9000 is above the largest allowed value, 8192",
    "optimizer: {betas: [0.9, 1]}": "optimizer.betas[1]: 1 is not below 1.0",
    # Combinations
    "model: {encoder: {num_attention_heads: 7}}": "model.encoder.hidden_size 768 is not divisible by "
    "model.encoder.num_attention_heads 7: change one of them (the nearest width is 763 or 770)",
    "model: {decoder: {hidden_size: 100}}": "model.decoder.hidden_size 100 is not divisible by "
    "model.decoder.num_attention_heads 12: change one of them (the nearest width is 96 or 108)",
    "objective: {name: joint}\nmodel: {decoder: {hidden_size: 36}}": "model.decoder.hidden_size 36 over "
    "model.decoder.num_attention_heads 12 makes heads of 3 channels, and objective.name joint needs an even number: "
    "change one of them (the nearest width is 24 or 48)",
    "objective: {name: mae}\nmodel: {encoder: {hidden_size: 60}}": "model.decoder.hidden_size 60 over "
    "model.decoder.num_attention_heads 12 makes heads of 5 channels, and objective.name mae needs an even number: "
    "change one of them (the nearest width is 48 or 72)",
    "data: {path: x, sequence_length: 1024}": "data.sequence_length 1024 is above "
    "model.encoder.max_position_embeddings 512: shorten the rows or raise the positions",
    "run: {steps: 300}": "schedule.warmup_steps 10000 is above run.steps 300: shorten the warmup or lengthen the run",
    "objective: {mask_token_share: 0.8, random_token_share: 0.3}": "objective.mask_token_share 0.8 and "
    "objective.random_token_share 0.3 are above 1 together: lower one of them",
    "objective: {name: joint, mlm_weight: 0, reconstruction_weight: 0}": "objective.mlm_weight 0 and "
    "objective.reconstruction_weight 0 leave nothing to learn: raise one of them",
    "schedule: {decay_steps: 10}": "schedule.decay_steps 10 has no meaning with schedule.name linear: leave it out or "
    "use schedule.name warmup_stable_decay",
    "schedule: {name: warmup_stable_decay, warmup_steps: 95000}": "schedule.warmup_steps 95000 and "
    "schedule.decay_steps 10000 are above run.steps 100000 together: shorten one of them or lengthen the run",
    "batch: {global_batch_size: 4}": "batch.micro_batch_size 8 is above batch.global_batch_size 4: lower the first or "
    "raise the second",
    "batch: {global_batch_size: 20}": "batch.global_batch_size 20 is not divisible by batch.micro_batch_size 8: use a "
    "global batch of 16 or 24",
    "batch: {global_batch_size_at: [{step: 9, rows: 20}]}": "batch.global_batch_size_at 20 (at step 9) is not "
    "divisible by batch.micro_batch_size 8: use a global batch of 16 or 24",
    "batch: {global_batch_size_at: [{step: 9, rows: 4}]}": "batch.micro_batch_size 8 is above "
    "batch.global_batch_size_at 4 (at step 9): lower the first or raise the second",
    "batch: {global_batch_size_at: [{step: 9, rows: 8}, {step: 5, rows: 16}]}": "batch.global_batch_size_at: the steps "
    "9, 5 do not rise: put them in order",
    # YAML
    "run:\n  seed: 1\n steps: 2": "line 3: not valid YAML (expected <block end>, but found '<block mapping start>')",
    "run:\n  seed: 1\n  steps: 5\n  seed: 2": "line 4: not valid YAML (key seed is written twice, first on line 2)",
    "1: 2": "line 1: not valid YAML (a key that is not plain text)",
    '"a\\nb": 2': "line 1: not valid YAML (a key that is not plain text)",
    "run: {seed: !!int x}": "line 1: not valid YAML ('x' is no tag:yaml.org,2002:int)",
    "run: !!map x": "line 1: not valid YAML (expected a mapping node, but found scalar)",
    "run: {seed: !!python/object/apply:os.getpid []}": "line 1: not valid YAML (could not determine a constructor for "
    "the tag 'tag:yaml.org,2002:python/object/apply:os.getpid')",
    "run: &a {seed: *a}": "line 1: not valid YAML (found unconstructable recursive node)",
    "run: \x07": "not valid YAML (character 5: special characters are not allowed)",
}


@pytest.mark.parametrize("text", FILE_MISTAKES)
def test_a_mistake_in_the_file_is_one_line_with_key_value_and_way_out(load, text):
    """Reference: the sentences a user should read."""
    with_data = text if "data:" in text else f"{text}\n{DATA}"
    assert message_of(load, with_data) == f"run.yaml: {FILE_MISTAKES[text]}"


WHOLE_FILE_MISTAKES = {
    "": "run.yaml: empty; a configuration is sections such as run:, data: and model:",
    "- 1": "run.yaml: [1] is not a mapping; a configuration is sections such as run:, data: and model:",
    "run: {seed: 1}": "run.yaml: data.path is missing: set it in the file or as data.path=VALUE on the command line",
    "data: {}": "run.yaml: data.path is missing: set it in the file or as data.path=VALUE on the command line",
    "data: {pth: x}": "run.yaml: unknown key data.pth (did you mean path?)",
}


@pytest.mark.parametrize("text", WHOLE_FILE_MISTAKES)
def test_an_incomplete_file_is_one_line(load, text):
    """Reference: the sentences a user should read."""
    assert message_of(load, text) == WHOLE_FILE_MISTAKES[text]


OVERRIDE_MISTAKES = {
    "run.seed": "'run.seed' is not an override; write it as key.sub=value",
    "run.sead=1": "unknown key run.sead (did you mean seed?)",
    "seed=1": "unknown key seed (did you mean run.seed?)",
    "--run.seed=1": "unknown key --run.seed (did you mean run.seed?)",
    "run.seed.x=1": "unknown key run.seed.x (did you mean run.seed?)",
    "=1": "unknown key  (known here: run, data, model, objective, batch, optimizer, schedule, engine, checkpoint, "
    "validation, probes, logging, profile, incidents, watchdog)",
    "optimizer.learning_rate=fast": "optimizer.learning_rate: 'fast' is not a number",
    "optimizer.betas=[0.9]": "optimizer.betas: [0.9] is not a list of two numbers",
    "run={seed: x}": "run.seed: 'x' is not a whole number",
    "data.path=3": "data.path: 3 is not text (put it in quotes)",
    "data.path=[": "'data.path=[': line 1: not valid YAML (expected the node content, but found '<stream end>')",
}


@pytest.mark.parametrize("override", OVERRIDE_MISTAKES)
def test_a_mistake_in_an_override_is_blamed_on_the_command_line(load, override):
    """Reference: the sentences a user should read."""
    assert message_of(load, DATA, override) == f"command line: {OVERRIDE_MISTAKES[override]}"


def test_an_override_below_something_that_is_no_section_says_so(load):
    """Reference: the sentence a user should read."""
    message = message_of(load, "data: null", "data.path=x")
    assert message == "command line: 'data.path=x': in the file, data is null and not a section"


def test_a_mistake_in_the_file_is_not_blamed_on_an_override_of_another_key(load):
    """Reference: a longer key that begins with the same letters."""
    assert message_of(load, DATA + "run: {seed: x}", "run.steps=20000").startswith("run.yaml: run.seed: 'x'")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    """Reference: the sentences a user should read."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"run: \xe9")
    for path, fault in (
        (tmp_path / "absent.yaml", "no such file"),
        (tmp_path, "cannot be read (Is a directory)"),
        (latin, "not UTF-8 text (byte 5); save the file as UTF-8"),
    ):
        with pytest.raises(UserError) as caught:
            load_config(path, [])
        assert str(caught.value) == f"{path}: {fault}"


@settings(deadline=None)
@given(st.text())
def test_no_text_ends_in_anything_but_a_config_or_one_line(tmp_path_factory, text):
    """Reference: none; any text may be handed over, as a file and as an override."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    complete = tmp_path_factory.getbasetemp() / "complete.yaml"
    complete.write_text(DATA)
    for file, overrides in ((path, []), (complete, [text]), (complete, [f"run.seed={text}"])):
        try:
            load_config(file, overrides)
        except UserError as exc:
            assert len(str(exc).splitlines()) == 1


def test_a_long_value_is_shortened_in_a_message(load):
    """Reference: a terminal of ordinary width."""
    assert len(message_of(load, DATA + f"run: {{seed: {'x' * 1000}}}")) < 150


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("+.5", 0.5), ("5.", 5.0), ("3", 3.0), ("010", 10.0)]
)
def test_numbers_are_those_of_yaml_1_2(load, text, value):
    """Reference: the core schema of YAML 1.2; PyYAML by itself reads 1e-4 as text and 010 as 8."""
    assert load(DATA, f"optimizer.learning_rate={text}").optimizer.learning_rate == value


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "2024-01-01", "1:30", "0x10", "=", "<<"])
def test_words_that_yaml_1_1_converts_stay_text(load, word):
    """Reference: the core schema of YAML 1.2."""
    assert load(f"data: {{path: {word}}}").data.path == word


def test_overrides_win_over_the_file_and_the_last_over_the_first(load):
    """Reference: the values by hand."""
    config = load(DATA + "run: {seed: 1, steps: 20000}", "run.seed=2", "model.decoder.hidden_size=384", "run.seed=3")
    assert (config.run.seed, config.run.steps) == (3, 20000)
    assert (config.model.decoder.hidden_size, config.model.decoder.num_hidden_layers) == (384, 2)


def test_an_override_of_an_aliased_section_changes_that_section_alone(load):
    """Reference: the values by hand."""
    config = load(DATA + "checkpoint: &steps {interval_steps: 5}\nlogging: *steps", "logging.interval_steps=7")
    assert (config.checkpoint.interval_steps, config.logging.interval_steps) == (5, 7)


def test_an_integer_is_fine_where_a_number_is_asked_for(load):
    """Reference: the value by hand."""
    clipping = load(DATA, "optimizer.gradient_clipping=0").optimizer.gradient_clipping
    assert clipping == 0.0
    assert isinstance(clipping, float)


def test_shares_that_are_one_up_to_rounding_are_accepted(load):
    """Reference: sums of two shares of hundredths, which are 1 to a reader."""
    for hundredths in range(101):
        shares = [f"{part}={value / 100}" for part, value in (("mask", hundredths), ("random", 100 - hundredths))]
        load(DATA, *(f"objective.{share.replace('=', '_token_share=')}" for share in shares))


def test_the_decoder_takes_from_the_encoder_what_is_not_set(load):
    """Reference: the values by hand."""
    decoder = load(DATA, "model.decoder.num_attention_heads=6").model.resolved_decoder()
    assert decoder == (2, 768, 6, 3072)


def test_an_odd_head_is_no_mistake_where_no_decoder_is_built(load):
    """Reference: objectives mae and joint, which refuse it."""
    decoder = load(DATA, "objective.name=mlm", "model.decoder.hidden_size=36").model.resolved_decoder()
    assert decoder.hidden_size // decoder.num_attention_heads == 3


@settings(deadline=None)
@given(
    path=st.text(min_size=1),
    seed=st.integers(min_value=0, max_value=2**63 - 1),
    learning_rate=st.floats(min_value=1e-300, max_value=1e300),
    decoder=st.none() | st.integers(min_value=1, max_value=100).map(lambda heads: 12 * heads),
)
def test_a_dumped_config_loads_back_equal(tmp_path_factory, path, seed, learning_rate, decoder):
    """Reference: the configuration itself, with paths that look like numbers, words and punctuation of YAML."""
    tree = {
        "run": {"seed": seed},
        "data": {"path": path},
        "optimizer": {"learning_rate": learning_rate},
        "model": {"decoder": {"hidden_size": decoder}},
    }
    config = Config.model_validate(tree)
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file, []) == config


@pytest.mark.parametrize(
    "path", ["1e4", "on", "null", "~", "010", "0.5", "数据/中文", "a: b", "# c", " x ", "=", "1_0", "a\x85b"]
)
def test_text_that_looks_like_something_else_survives_the_dump(load, path):
    """Reference: the text itself."""
    assert load(dump_config(Config(data=Data(path=path)))).data.path == path


def test_a_dump_holds_every_field_in_order():
    """Reference: the list of fields."""
    keys = list(flat(yaml.safe_load(dump_config(Config(data=Data(path="x"))))))
    assert keys == [row.key for row in field_rows()]


def flat(tree, prefix=""):
    for name, value in tree.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_once_it_is_told_the_data(preset):
    """Reference: the preset's own name, which its run directory repeats."""
    config = load_config(preset, ["data.path=shards"])
    assert config.run.directory == f"runs/{preset.stem}"
    assert gradient_accumulation_steps(config, world_size=2) >= 1
    with pytest.raises(UserError, match=r"data\.path is missing"):
        load_config(preset, [])


def test_the_presets_are_there():
    """Reference: the list of presets in the documentation."""
    names = {path.stem for path in PRESETS}
    assert names >= {"demo", "bert-base", "bert-base-chinese", "mae-base", "bertmae-base"}


def test_global_batch_is_micro_batch_times_devices_times_accumulation():
    """Reference: the product."""
    config = Config(data=Data(path="x"), batch=Batch(global_batch_size=96, micro_batch_size=8))
    for world_size in (1, 2, 3, 4, 6, 12):
        assert 8 * world_size * gradient_accumulation_steps(config, world_size) == 96


@pytest.mark.parametrize(
    ("rows", "world_size", "way_out"),
    [
        (96, 5, "8 x 5 devices = 40 rows: use a global batch of 80 or 120"),
        (16, 4, "= 32 rows: use a global batch of 32"),
    ],
)
def test_a_global_batch_that_does_not_divide_names_the_nearest_that_do(rows, world_size, way_out):
    """Reference: the multiples by hand."""
    config = Config(data=Data(path="x"), batch=Batch(global_batch_size=rows, micro_batch_size=8))
    with pytest.raises(UserError) as caught:
        gradient_accumulation_steps(config, world_size)
    assert str(caught.value).startswith(
        f"batch.global_batch_size {rows} is not divisible by batch.micro_batch_size 8 x"
    )
    assert str(caught.value).endswith(way_out)


def test_every_global_batch_of_the_run_must_divide_and_gives_its_accumulation_steps():
    """Reference: quotients by hand, before, at and after a change; 48 rows are no multiple of 4 x 8."""
    changes = (RowsAt(step=10, rows=48), RowsAt(step=20, rows=96))
    config = Config(data=Data(path="x"), batch=Batch(global_batch_size=32, global_batch_size_at=changes))
    steps = (0, 9, 10, 19, 20, 1000)
    assert [global_batch_size(config.batch, step) for step in steps] == [32, 32, 48, 48, 96, 96]
    assert [gradient_accumulation_steps(config, 2, step) for step in steps] == [2, 2, 3, 3, 6, 6]
    with pytest.raises(UserError) as caught:
        gradient_accumulation_steps(config, world_size=4)
    assert str(caught.value) == (
        "batch.global_batch_size_at 48 (at step 10) is not divisible by batch.micro_batch_size 8 x 4 devices = 32 "
        "rows: use a global batch of 32 or 64"
    )


@pytest.mark.parametrize("same_tokens", [False, True])
def test_the_tokens_of_a_source_count_every_step_with_its_rows_its_length_and_its_weights(same_tokens):
    """Reference: the sum over the steps one by one."""
    sources = (Source(name="a", path="a", weight=3), Source(name="b", path="b", weight=1))
    weights, lengths = (WeightsAt(step=40, weights=(1, 1)),), (LengthAt(step=60, length=512),)
    data = Data(sources=sources, sequence_length=128, weights_at=weights, sequence_length_at=lengths)
    sizes = (RowsAt(step=10, rows=16), RowsAt(step=60, rows=64), RowsAt(step=200, rows=128))
    batch = Batch(global_batch_size=8, global_batch_size_at=sizes, same_tokens_per_step=same_tokens)
    config = Config(run=Run(steps=100), schedule=Schedule(warmup_steps=0), data=data, batch=batch)
    assert stretches(config) == [(0, 10), (10, 40), (40, 60), (60, 100)]
    tokens = [0.0, 0.0]
    for step in range(100):
        rows = 8 if step < 10 else 16 if step < 60 else 64
        length = 128 if step < 60 or same_tokens else 512
        for k, weight in enumerate((0.75, 0.25) if step < 40 else (0.5, 0.5)):
            tokens[k] += rows * length * weight
    assert token_shares(config) == pytest.approx([part / sum(tokens) for part in tokens])


def test_the_closing_decay_is_a_tenth_of_the_run_unless_set():
    """Reference: the numbers by hand."""
    schedule = Schedule(name="warmup_stable_decay", warmup_steps=0)
    data = Data(path="x")
    assert decay_steps(Config(data=data, run=Run(steps=200), schedule=schedule)) == 20
    assert decay_steps(Config(data=data, run=Run(steps=3), schedule=schedule)) == 1
    explicit = schedule.model_copy(update={"decay_steps": 7})
    assert decay_steps(Config(data=data, run=Run(steps=200), schedule=explicit)) == 7


def test_differences_are_the_fields_of_the_sections_that_differ(load):
    """Reference: the list by hand."""
    a = load(DATA)
    b = load(DATA, "run.seed=1", "run.directory=x", "model.encoder.hidden_size=384", "optimizer.betas=[0.9,0.99]")
    assert differences(a, b, ["model", "run.seed", "batch"]) == [
        ("run.seed", 0, 1),
        ("model.encoder.hidden_size", 768, 384),
    ]
    assert differences(a, b, ["optimizer"]) == [("optimizer.betas", (0.9, 0.98), (0.9, 0.99))]
    assert differences(a, a, ["run", "data", "model"]) == []


def test_differences_refuse_a_section_that_does_not_exist():
    """Reference: a misspelt section would compare nothing, in silence."""
    config = Config(data=Data(path="x"))
    with pytest.raises(KeyError):
        differences(config, config, ["modle"])


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures and schedules

MIXTURE = "data: {sources: [{name: en, path: a, weight: 2.0}, {name: zh, path: b, weight: 1.0}]}\n"


def test_a_mixture_is_read_and_written_back_equal(load):
    """Reference: the fields one by one."""
    changes = ["data.weights_at=[{step: 10, weights: [1, 1]}]", "data.sequence_length_at=[{step: 20, length: 512}]"]
    config = load(MIXTURE, "data.sequence_length=128", *changes)
    assert [(source.name, source.path, source.weight) for source in config.data.sources] == [
        ("en", "a", 2.0),
        ("zh", "b", 1.0),
    ]
    assert (config.data.weights_at[0].step, config.data.weights_at[0].weights) == (10, (1.0, 1.0))
    assert (config.data.sequence_length_at[0].step, config.data.sequence_length_at[0].length) == (20, 512)
    assert load(dump_config(config)) == config


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("data.path=x", "data.path x and data.sources are both given"),
        ("data.sources=[{name: a, path: x, weight: 1}, {name: a, path: y, weight: 1}]", "the same name among a, a"),
        ("data.sources=x", "data.sources: 'x' is not a list"),
        ("data.weights_at=[{step: 5, weights: [1]}]", "1 weights at step 5 for 2 data.sources"),
        ("data.sequence_length_at=[{step: 9, length: 64}, {step: 9, length: 32}]", "the steps 9, 9 do not rise"),
        ("data.sequence_length_at=[{step: 9, length: 1024}]", "length 1024 is above model.encoder.max_position"),
        ("data.continue_grown=true", "data.continue_grown works neither with data.sources"),
        ("data.piece_length=511", "data.piece_length 511 does not fit into data.sequence_length 512"),
        ("data.piece_overlap=510", "data.piece_overlap 510 leaves nothing new in a piece of 510 tokens"),
    ],
)
def test_a_mixture_that_cannot_work_is_one_line(load, override, fault):
    """Reference: the sentences a user should read."""
    message = message_of(load, MIXTURE, override)
    assert fault in message
    assert "\n" not in message


def test_rows_that_follow_the_length_must_divide(load):
    """Reference: 8 rows of 128 tokens are 2 of 512, and no whole number of 384 / 128 = 3 rows."""
    words = ["data.sequence_length=128", "batch.same_tokens_per_step=true", "batch.micro_batch_size=8"]
    assert load(DATA, *words, "data.sequence_length_at=[{step: 5, length: 512}]").batch.same_tokens_per_step
    message = message_of(load, DATA, *words, "data.sequence_length_at=[{step: 5, length: 384}]")
    assert "batch.micro_batch_size 8 divisible by the ratio" in message
