from __future__ import annotations

import pytest

from bench.__main__ import SMOKE, _parser
from bench.profiles.thresholds import parse
from bench.scenarios import PROFILES, SCENARIOS


def test_smoke_takes_every_scenario_and_a_load_that_no_slow_machine_fails():
    named = [words.split()[0] for words in SMOKE]
    assert named == [*SCENARIOS, "load"]
    for words in SMOKE:
        options = _parser().parse_args(words.split())
        assert options.strict is False
        assert options.output is None or options.scenario == "load"
    assert options.correctness_only
    assert not any(threshold.is_of_speed for threshold in options.thresholds)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_write_their_report_and_take_thresholds_of_ones_own(name):
    words = [name, "--threshold", "lost count==0", "--threshold", "ws_delivery_latency p(99)<500"]
    options = _parser().parse_args(words)
    assert options.thresholds == [parse("lost count==0"), parse("ws_delivery_latency p(99)<500")]
    assert options.output.parts[-2:] == ("bench", "reports")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("load --stages 10", "is no stage"),
        ("load --threshold latency<1", "is no threshold"),
        ("load --mix reads", "is no weight"),
        ("load --url localhost", "is no server"),
        ("load --generators 0", "at least 1 is needed"),
        ("load --followers many", "is no whole number"),
    ],
)
def test_an_option_that_is_wrong_is_told_with_what_is_right(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        _parser().parse_args(words.split())
    assert said in capsys.readouterr().err
