from __future__ import annotations

import subprocess
import sys

import pytest

from bench.child import ROOT
from bench.fuzz import corpus, findings, plain_engine
from bench.fuzz.mutate import MAX_BYTES, POOL, Mutator
from fluxora.http import request_head, strict_json
from fluxora.protocol import amounts, cursors


@pytest.mark.parametrize("name", corpus.TARGETS)
def test_no_input_of_the_corpus_is_a_finding_and_both_answers_occur(name):
    target = corpus.load(name)
    answers = [target.execute(data) for data in corpus.inputs(name)]
    assert answers.count(True) > 5
    assert answers.count(False) > 5
    assert corpus.tokens(name)


def test_a_run_is_counted(tmp_path, capsys):
    assert plain_engine.fuzz("decimal", runs=3_000, seed=1, failures=tmp_path) == 0
    assert capsys.readouterr().out.startswith("decimal: 3,000 executions, ")
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_inputs():
    one, same, other = (
        [mutator() for _ in range(100)] for mutator in (Mutator([b"abc"], [b"token"], seed) for seed in (1, 1, 2))
    )
    assert one == same
    assert one != other


def lenient_amount(value, decimals=7):
    return real_amount(value.strip(), decimals)


def lenient_cursor(cursor, filters):
    return real_cursor(cursor.rstrip("="), filters)


def lenient_json(body):
    return real_json(body.replace(b"NaN", b"0"))


def lenient_head(data):
    return real_head(data.replace(b" :", b":"))


real_amount, real_cursor, real_json, real_head = (
    amounts.parse_amount,
    cursors.decode,
    strict_json.read,
    request_head.parse,
)


@pytest.mark.parametrize(
    ("name", "parser"),
    [
        ("decimal", ("bench.fuzz.targets.decimal_target.amounts.parse_amount", lenient_amount)),
        ("cursor", ("bench.fuzz.targets.cursor_target.cursors.decode", lenient_cursor)),
        ("json", ("bench.fuzz.targets.json_target.strict_json.read", lenient_json)),
        ("head", ("bench.fuzz.targets.head_target.parse", lenient_head)),
    ],
)
def test_a_parser_that_is_too_lenient_is_found_and_its_input_kept(monkeypatch, tmp_path, capsys, name, parser):
    corpus.load(name)
    monkeypatch.setattr(*parser)
    assert plain_engine.fuzz(name, runs=500, seed=1, failures=tmp_path) == 1
    kept = [file.read_bytes() for file in tmp_path.iterdir()]
    assert kept
    shown = capsys.readouterr().out
    for data in kept:
        assert repr(data) in shown
        with pytest.raises(findings.Contradiction):
            corpus.load(name).execute(data)


def test_an_exception_that_is_not_documented_is_found_once(monkeypatch, tmp_path, capsys):
    def parse(_model, _pairs):
        raise KeyError("internal")

    corpus.load("query")
    monkeypatch.setattr("bench.fuzz.targets.query_target.read_query", parse)
    assert plain_engine.fuzz("query", runs=200, seed=1, failures=tmp_path) == 1
    assert capsys.readouterr().out.count("FINDING") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_mutations_stay_in_bounds_and_keep_the_corpus():
    begin = [b"a" * MAX_BYTES, b"b"]
    mutator = Mutator(begin, [b"token"], seed=7)
    seen = []
    for _ in range(5_000):
        data = mutator()
        seen.append(data)
        mutator.keep(data)
    assert max(map(len, seen)) == MAX_BYTES
    assert len(set(seen)) > 4_000
    assert any(b"token" in data for data in seen)
    assert len(mutator._pool) == POOL
    assert mutator._pool[:2] == begin


def test_a_corpus_that_is_no_list_of_bytes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "CORPUS", tmp_path)
    (tmp_path / "head.txt").write_text("# inputs\nb'ok'\n'text'\n")
    with pytest.raises(TypeError, match="not a bytes literal: 'text'"):
        corpus.inputs("head")


def test_the_command_runs_every_target():
    ended = subprocess.run(
        [sys.executable, "-m", "bench.fuzz", "all", "--runs", "10", "--engine", "plain", "--jobs", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert sorted(line.split(":")[0] for line in ended.stdout.splitlines()) == sorted(corpus.TARGETS)
