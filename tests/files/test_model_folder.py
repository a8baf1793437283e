"""The files of a saved model: what comes back, and what is refused before saving and when reading."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from monoloss.errors import InputError
from monoloss.files.model_folder import (
    CONFIG,
    TENSORS,
    Provenance,
    check_replaceable,
    check_savable,
    model_config,
    opened_tensors,
    peek_config,
    read_provenance,
    read_tensors,
    write_model_config,
    write_tensors,
)
from monoloss.version import __version__

PROVENANCE = Provenance({"name": "clip", "sizes": (224, 224)}, "a1", {"lr": 1e-3})


def a_model() -> nn.Module:
    model = nn.Linear(3, 2)
    model.register_buffer("count", torch.tensor([5, 7]))
    return model


def test_provenance_is_copied_into_what_json_gives_back():
    encoder = {"sizes": (1, [2])}
    provenance = Provenance(encoder)
    encoder["sizes"] = None
    assert provenance == Provenance({"sizes": [1, [2]]}, None, None)


def test_config_comes_back_with_its_provenance(tmp_path):
    write_model_config(tmp_path / CONFIG, {"d_in": 3}, PROVENANCE, format_version=2)
    content = peek_config(tmp_path)
    assert content.pop("format_version") == 2
    assert content == model_config({"d_in": 3}, PROVENANCE)
    assert (content["library"], content["library_version"]) == ("monoloss", __version__)
    assert read_provenance("x", content, ("d_in",)) == PROVENANCE


@pytest.mark.parametrize("text", [None, "{", "[1]", "\xff", "[" * 100_000])
def test_a_config_that_is_none_is_empty(tmp_path, text):
    if text is not None:
        (tmp_path / CONFIG).write_bytes(text.encode("latin-1"))
    assert peek_config(tmp_path) == {}


def test_tensors_come_back_in_float32(tmp_path):
    model = a_model().to(torch.bfloat16)
    write_tensors(tmp_path / TENSORS, model)
    with opened_tensors(tmp_path / TENSORS) as file:
        tensors = read_tensors(file, tmp_path / TENSORS, a_model().state_dict())
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes == {"weight": torch.float32, "bias": torch.float32, "count": torch.int64}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor.to(tensors[name].dtype))  # bfloat16 is exact in float32


@pytest.mark.door
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, math.nan]}, "training.a[1]: got nan; expected a finite number"),
        ({"a": {2: 3}}, "training.a: the key 2: got a int; expected a text"),
        (
            {"a": Path("x")},
            "training.a: got a PosixPath; expected a text, a number, True, False, None, a list or a map",
        ),
        ("adam", "training: got a str; expected a mapping or None"),
    ],
)
def test_provenance_that_json_cannot_hold(value, text):
    with pytest.raises(InputError) as caught:
        Provenance(training=value)
    assert str(caught.value).startswith(text)


@pytest.mark.door
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": 1}, "x: colour: got an unknown key; expected one of library, library_version, d_in, encoder, "),
        ({"library": 3}, "x: library: got 3; expected text"),
        ({"encoder": "clip"}, "x: encoder: got a str; expected a mapping or None"),
    ],
)
def test_keys_of_a_config_that_are_refused(change, text):
    content = model_config({"d_in": 3}, PROVENANCE)
    with pytest.raises(InputError) as caught:
        read_provenance("x", {**content, **change}, ("d_in",))
    assert str(caught.value).startswith(text)
    for key in content:
        with pytest.raises(InputError) as caught:
            read_provenance("x", {name: value for name, value in content.items() if name != key}, ("d_in",))
        assert str(caught.value) == f"x: {key}: got nothing; expected a value for this key"


@pytest.mark.door
def test_only_a_model_of_the_same_kind_is_replaced(tmp_path):
    names = (TENSORS, CONFIG)
    check_replaceable(tmp_path / "new", names, is_ours=False, kind="toy")
    check_replaceable(tmp_path, names, is_ours=False, kind="toy")  # empty
    (tmp_path / CONFIG).touch()
    check_replaceable(tmp_path, names, is_ours=True, kind="toy")
    text = f"{tmp_path}: got a folder with other files; expected a new folder, or one with a toy only"
    with pytest.raises(InputError) as caught:
        check_replaceable(tmp_path, names, is_ours=False, kind="toy")
    assert str(caught.value) == text
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError) as caught:
        check_replaceable(tmp_path, names, is_ours=True, kind="toy")
    assert str(caught.value) == text


@pytest.mark.door
def test_models_that_cannot_be_saved():
    check_savable(a_model())
    with pytest.raises(InputError) as caught:
        check_savable(a_model().double())
    assert (
        str(caught.value) == "weight: got dtype torch.float64; expected at most torch.float32: .float() rounds a model"
    )
    model = a_model()
    nn.init.constant_(model.bias, torch.inf)
    with pytest.raises(InputError, match="bias: got NaN or infinity; expected finite numbers"):
        check_savable(model)
    model = a_model()
    model.register_buffer("threshold", torch.tensor(torch.nan))
    with pytest.raises(InputError, match="threshold: got no calibrated value; expected calibrate_ on training rows"):
        check_savable(model)


@pytest.mark.door
def test_files_that_hold_no_tensors(tmp_path):
    path = tmp_path / TENSORS
    for content, text in (
        (None, f"{path}: got no such file; expected a saved model folder"),
        (b"torn", f"{path}: got an unreadable file ("),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught, opened_tensors(path):
            pass
        assert str(caught.value).startswith(text)
    path.rename(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: got a pickle file; expected model\.safetensors"):
        opened_tensors(path).__enter__()


@pytest.mark.door
@pytest.mark.parametrize(
    ("expected", "not_negative", "got"),
    [
        ({"a": torch.ones(2)}, (), "a tensor 'b'"),
        ({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(1)}, (), "no tensor 'c'"),
        ({"a": torch.ones(3), "b": torch.ones(2)}, (), "a of shape (2,)"),
        ({"a": torch.ones(2, dtype=torch.int64), "b": torch.ones(2)}, (), "a of dtype torch.float32"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, (), "b with NaN or infinity"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, ("a",), "a below 0"),
    ],
)
def test_tensors_that_are_refused(tmp_path, expected, not_negative, got):
    model = nn.ParameterDict({"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([1.0, torch.nan])})
    write_tensors(tmp_path / TENSORS, model)
    with opened_tensors(tmp_path / TENSORS) as file, pytest.raises(InputError) as caught:
        read_tensors(file, tmp_path / TENSORS, expected, not_negative)
    assert (caught.value.argument, caught.value.got) == (str(tmp_path / TENSORS), got)
