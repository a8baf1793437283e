"""The model card: what it says of a SAE, and that its lines load the model."""

from __future__ import annotations

import re

import pytest
import torch
from huggingface_hub import ModelCard

from monoloss.errors import InputError
from monoloss.sae.model_card import model_card_text
from support.saved_saes import PROVENANCE, D, M, sample_rows, saved, trained_sae


def test_the_card_says_what_it_is(tmp_path):
    sae = trained_sae("topk_centred")
    sae.provenance = PROVENANCE
    measures = {"score_mean": 0.123456, "n_latents": 16384.0, "purity|x": float("nan"), "mse": 1.5e-7}
    sae.save_pretrained(tmp_path / "sae", license="apache-2.0", evaluation=measures)
    card = ModelCard.load(tmp_path / "sae" / "README.md")
    assert (card.data.library_name, card.data.license) == ("monoloss", "apache-2.0")
    assert {"sparse-autoencoder", "pytorch_model_hub_mixin", "topk"} <= set(card.data.tags)
    for line in (
        f"# Sparse autoencoder: topk, {M} latents on rows of width {D}",
        f"| d_in | {D} |",
        "| inputs.center | True |",
        "| encoder.size | [224, 224] |",
        "| store_fingerprint | ab12 |",
        "| training.name | Zürich |",
        "| score_mean | 0.1235 |",
        "| n_latents | 16384 |",
        "| purity\\|x | undefined |",
        "| mse | 1.5e-07 |",
    ):
        assert line in card.text.splitlines()


def test_the_card_says_no_more_than_is_known(tmp_path):
    _, folder = saved("vanilla", tmp_path)
    card = ModelCard.load(folder / "README.md")
    assert "license" not in card.data.to_dict()
    assert "Evaluation" not in card.text
    assert "None" not in card.text


def test_the_lines_of_the_card_load_the_model(tmp_path):
    sae, folder = saved("jump_relu", tmp_path)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    names = {"embeddings": sample_rows()}
    exec(code.replace("FOLDER", str(folder)), names)  # noqa: S102 - the lines that this library wrote
    assert len(code.splitlines()) == 3
    assert torch.equal(names["codes"].to_dense(), sae.encode(sample_rows()).to_dense())


def test_text_and_tables():
    metadata = {"variant": "topk", "n_latents": 8, "aux": {"k": 2, "off": None}, "note": "a\n b|c", "empty": {}}
    text = model_card_text(3, metadata, {"r2": 0.98765, "n_alive": 7.0, "worst": float("-inf")})
    assert text.startswith("# Sparse autoencoder: topk, 8 latents on rows of width 3\n")
    assert "codes = sae.encode(embeddings)  # (n, 3) -> sparse (n, 8)" in text.splitlines()
    facts, measures = (part.split("\n\n")[1].splitlines() for part in text.split("## ")[2:])
    assert facts == [
        *("| fact | value |", "| --- | --- |", "| d_in | 3 |", "| variant | topk |", "| n_latents | 8 |"),
        *("| aux.k | 2 |", "| note | a b\\|c |"),
    ]
    assert measures[2:] == ["| r2 | 0.9877 |", "| n_alive | 7 |", "| worst | -inf |"]
    assert "## Evaluation" not in model_card_text(3, metadata, None)


@pytest.mark.door
def test_error_texts():
    metadata = {"variant": "topk", "n_latents": 8}
    for evaluation, text in (
        ([0.5], "evaluation: got a list; expected a mapping of names to numbers, as Evaluation.summary"),
        ({"r2": "high"}, "evaluation.r2: got 'high'; expected a number"),
        ({"r2": True}, "evaluation.r2: got True; expected a number"),
    ):
        with pytest.raises(InputError) as caught:
            model_card_text(3, metadata, evaluation)
        assert str(caught.value) == text
