"""Settings from a file: the same as on the command line, before the words that are typed."""

import dataclasses
import json

import pytest

from stages.cli.parse import parse
from stages.config import ConfigError

WORDS = [
    *("--preset micro --seeds 5 --env DeepSea-bsuite --env.size 6 --mode mix --eval-greedy True".split()),
    *("--replay.train-ratio 64 --hypers.lr 0.002 --ensemble.input feat --sweep agc=0.1,0.3".split()),
]
JSON = """{"preset": "micro", "seeds": 5, "env": "DeepSea-bsuite", "env_args": {"size": 6}, "mode": "mix",
"eval_greedy": true, "replay": {"train_ratio": 64}, "hypers": {"lr": 0.002}, "ensemble": {"input": "feat"},
"sweep": ["agc=0.1,0.3"]}"""
TOML = """
preset = "micro"
seeds = 5
env = "DeepSea-bsuite"
env_args = {size = 6}
mode = "mix"
eval_greedy = true
sweep = ["agc=0.1,0.3"]
replay.train_ratio = 64
[hypers]
lr = 2e-3
[ensemble]
input = "feat"
"""


def parsed(tmp_path, text, *words, name="settings.json"):
    """The arguments that a file gives, without the file's name."""
    path = tmp_path / name
    path.write_text(text)
    return dataclasses.replace(parse(["--config", str(path), *words]), config_file="")


@pytest.mark.parametrize(("text", "name"), [(JSON, "settings.json"), (TOML, "settings.toml")])
def test_a_file_says_what_flags_say(tmp_path, text, name):
    assert parsed(tmp_path, text, name=name) == parse(WORDS)


def test_flags_come_after_it(tmp_path):
    found = parsed(tmp_path, JSON, "--seeds", "7", "--hypers.lr", "0.1", "--env.size", "8", "--preset", "tiny")
    assert found == parse([*WORDS, "--seeds", "7", "--hypers.lr", "0.1", "--env.size", "8", "--preset", "tiny"])
    assert found.config.model.deter == 64 and found.config.env_args == (("size", "8"),)


@pytest.mark.parametrize("switches", [[], ["--checkpoint-best"]])
def test_a_runs_config_makes_it_again(tmp_path, switches):
    arguments = parse([*WORDS, "--logdir", "somewhere", "--steps", "1e5", *switches])
    text = json.dumps(dataclasses.asdict(arguments) | {"versions": {"jax": "1"}})
    assert parsed(tmp_path, text) == dataclasses.replace(arguments, logdir="")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"hypers": {"lrr": 1}}', "no setting 'hypers.lrr'; did you mean hypers.lr"),
        ('{"qqqqqqqq": 1}', "no setting 'qqqqqqqq'; --help"),
        ("{", "cannot read --config"),
        ("[1]", "must hold settings by their names, not list"),
        ('{"hypers": {"lr": -1}}', "--hypers.lr must be finite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        parsed(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["settings.TOML", "settings.toml", "settings.Json"])
def test_a_file_may_begin_with_a_mark_and_be_named_in_capitals(tmp_path, name):
    text = TOML if name.lower().endswith("toml") else JSON
    assert parsed(tmp_path, "\ufeff" + text, name=name) == parse(WORDS)


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"env: CartPole-v1", "settings.yaml", r"read from \.json and \.toml files"),
        (b"{}", "settings", r"read from \.json and \.toml files"),
        (b"[" * 200_000, "settings.json", "cannot read .*recursion"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "settings.json", "there is no setting|cannot read"),
        (b"a = " + b"[" * 200_000, "settings.toml", "cannot read"),
        ("é".encode("latin-1"), "settings.toml", "cannot read .*utf-8"),
        (b'{"env_args": 5}', "settings.json", "env_args must be values by their names, not 5"),
        (b'{"env_args": [["size"]]}', "settings.json", "env_args must be values by their names"),
        (b'{"env_args": "size"}', "settings.json", "env_args must be values by their names"),
        (b'{"config": [1]}', "settings.json", "no setting 'config'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, content, name, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says) as error:
        parse(["--config", str(tmp_path / name)])
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        parse(["--config", str(tmp_path / "none.json")])
