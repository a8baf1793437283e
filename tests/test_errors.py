"""Errors of users: their texts, and the extra that a missing package belongs to."""

from __future__ import annotations

import pickle

import pytest

from monoloss.errors import InputError, MissingExtraError, first_line, missing_extra, needs_extra, some_names


def test_an_error_says_what_was_passed_and_expected_also_after_pickling():
    error = InputError("k", 9, "at most 8")
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert (copy.argument, copy.got, copy.expected) == ("k", "9", "at most 8")
        assert str(copy) == "k: got 9; expected at most 8"
        assert isinstance(copy, ValueError)


def test_a_missing_package_is_an_import_error_that_names_the_extra_also_after_pickling():
    error = MissingExtraError("matplotlib", "report")
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert str(copy) == "matplotlib: got no such package; expected pip install 'monoloss[report]'"
        assert isinstance(copy, ImportError)
        assert copy.args == ("matplotlib", "report")


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one \ntwo")) == "one "
    assert first_line(ValueError()) == "ValueError"


def test_many_names_are_counted():
    assert some_names(["a", "b"], 2) == "a, b"
    assert some_names(["a", "b", "c\n", "d"], 3) == "a, b, 'c\\n' and 1 more"
    assert some_names([]) == ""


def test_a_named_extra_and_its_cause():
    cause = ModuleNotFoundError(name="matplotlib.pyplot")
    with pytest.raises(MissingExtraError, match=r"monoloss\[report\]") as caught, needs_extra("report"):
        raise cause
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    ("package", "asked", "extra"),
    [
        ("PIL", None, "vision"),
        ("PIL.Image", "report", "report"),
        ("PIL", "finetune", "finetune"),
        ("PIL", "demo", "demo"),
        ("PIL", "interop", "vision"),
        ("yaml", "train", "train"),
        ("jsonargparse", None, "cli"),
        ("lightning.pytorch", "cli", "train"),
        ("datasets", "finetune", "interop"),
    ],
)
def test_the_extra_of_what_was_asked_for(package, asked, extra):
    name = package.partition(".")[0]
    assert str(missing_extra(ModuleNotFoundError(name=package), asked)) == str(MissingExtraError(name, extra))


def test_who_asked_last_names_the_extra_if_it_brings_the_package():
    refusal = pytest.raises(MissingExtraError, match=r"monoloss\[finetune\]")
    with refusal, needs_extra("finetune"), needs_extra("vision"):
        raise ModuleNotFoundError(name="timm")
    refusal = pytest.raises(MissingExtraError, match=r"monoloss\[interop\]")
    with refusal, needs_extra("finetune"), needs_extra("interop"):
        raise ModuleNotFoundError(name="datasets")


def test_a_package_of_no_extra_is_a_fault_of_ours():
    with pytest.raises(ModuleNotFoundError, match="no such thing"), needs_extra("train"):
        raise ModuleNotFoundError("no such thing", name="thing")
