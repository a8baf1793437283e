"""SAE configurations as nested plain values: there and back, and nothing else is let in."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoloss.errors import InputError
from monoloss.files.dataclasses import read_field, to_plain
from monoloss.sae.config import (
    AuxLoss,
    BatchTopKConfig,
    InputScaling,
    JumpReluConfig,
    SaeConfig,
    TopKConfig,
    VanillaConfig,
)

SCALINGS = st.builds(InputScaling, unit_norm=st.booleans(), center=st.booleans(), standardise=st.booleans())
COUNTS = st.integers(1, 10**12)
NOT_NEGATIVE = st.floats(0, 1e30)
POSITIVE = st.floats(1e-30, 1e30)
AUXES = st.builds(AuxLoss, k=COUNTS, weight=NOT_NEGATIVE, dead_after_samples=COUNTS)
SIZES = st.tuples(COUNTS, COUNTS).map(sorted)  # k, n_latents
CONFIGS = (
    st.builds(
        lambda sizes, tied, inputs, aux: TopKConfig("topk", sizes[1], sizes[0], tied, inputs, aux),
        SIZES,
        st.booleans(),
        SCALINGS,
        AUXES,
    )
    | st.builds(
        lambda sizes, inputs, aux: BatchTopKConfig("batch_topk", sizes[1], sizes[0], inputs, aux),
        SIZES,
        SCALINGS,
        AUXES,
    )
    | st.builds(
        JumpReluConfig,
        variant=st.just("jump_relu"),
        n_latents=st.just(1000),
        l0_weight=NOT_NEGATIVE,
        target_l0=st.none() | st.floats(0.5, 1000),
        bandwidth=POSITIVE,
        initial_threshold=NOT_NEGATIVE,
        dead_after_samples=COUNTS,
        inputs=SCALINGS,
    )
    | st.builds(
        VanillaConfig,
        variant=st.just("vanilla"),
        n_latents=COUNTS,
        l1_weight=NOT_NEGATIVE,
        dead_after_samples=COUNTS,
        inputs=SCALINGS,
    )
)
ONE_OF_EACH = {
    config.variant: config
    for config in (
        TopKConfig("topk", 8, 2),
        BatchTopKConfig("batch_topk", 8, 2),
        JumpReluConfig("jump_relu", 8, target_l0=4.0),
        VanillaConfig("vanilla", 8),
    )
}


def from_plain(content: object, where: str = "config", kinds: Any = SaeConfig) -> Any:
    return read_field(kinds, content, where, complete=True)


def places(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every key: its dotted path, the dict that holds it, its name there."""
    for key, value in content.items():
        yield prefix + key, content, key
        if isinstance(value, dict):
            yield from places(value, f"{prefix}{key}.")


@given(CONFIGS)
def test_there_and_back_through_json(config):
    content = json.loads(json.dumps(to_plain(config)))
    back = from_plain(content)
    assert back == config
    assert type(back) is type(config)
    assert next(iter(content)) == "variant"


def test_every_variant_is_tried_here():
    assert {type(config) for config in ONE_OF_EACH.values()} == set(get_args(SaeConfig))


@pytest.mark.door
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_every_key_must_be_there(variant):
    content = to_plain(ONE_OF_EACH[variant])
    paths = [path for path, _, _ in places(content)]
    assert len(paths) > len(content)  # the nested ones too
    for path in paths:
        torn = copy.deepcopy(content)
        holder, key = next((holder, key) for other, holder, key in places(torn) if other == path)
        del holder[key]
        with pytest.raises(InputError) as caught:
            from_plain(torn, "config.json: sae")
        assert str(caught.value).startswith(f"config.json: sae.{path}: got nothing; expected ")


@pytest.mark.door
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_no_key_is_of_another_type(variant):
    content = to_plain(ONE_OF_EACH[variant])
    for path in [path for path, _, _ in places(content)]:
        for wrong in ("8", [8], {}, None) if path != "target_l0" else ("8", [8], {}):
            other = copy.deepcopy(content)
            holder, key = next((holder, key) for place, holder, key in places(other) if place == path)
            holder[key] = wrong
            with pytest.raises(InputError) as caught:
                from_plain(other, "sae")
            assert caught.value.argument.startswith(f"sae.{path}")


def changed(variant: str, path: str, value: object) -> dict[str, Any]:
    content = to_plain(ONE_OF_EACH[variant])
    *outer, key = path.split(".")
    holder = content
    for name in outer:
        holder = holder[name]
    holder[key] = value
    return content


@pytest.mark.door
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], "sae: got a list; expected keys and values"),
        ({}, "sae.variant: got nothing; expected one of topk, batch_topk, jump_relu, vanilla"),
        (
            changed("topk", "variant", "gated"),
            "sae.variant: got 'gated'; expected one of topk, batch_topk, jump_relu, vanilla",
        ),
        (
            changed("topk", "variant", ["topk"]),
            "sae.variant: got ['topk']; expected one of topk, batch_topk, jump_relu, vanilla",
        ),
        (
            changed("batch_topk", "tied", False),
            "sae.tied: got an option of topk; expected those of batch_topk: variant, n_latents, k, inputs, aux",
        ),
        (
            changed("vanilla", "inputs.centre", False),
            (
                "sae.inputs.centre: got an unknown key; expected center, if that was meant, "
                "or one of unit_norm, center, standardise"
            ),
        ),
        (changed("topk", "n_latents", 8.0), "sae.n_latents: got 8.0; expected an integer"),
        (changed("topk", "n_latents", True), "sae.n_latents: got True; expected an integer"),
        (changed("topk", "n_latents", 10**400), f"sae.n_latents: got {10**400}; expected an integer"),
        (changed("topk", "aux.weight", 10**400), f"sae.aux.weight: got {10**400}; expected a number"),
        (changed("topk", "tied", 0), "sae.tied: got 0; expected true or false"),
        (changed("topk", "aux.weight", None), "sae.aux.weight: got None; expected a number"),
        (changed("topk", "aux", None), "sae.aux: got a NoneType; expected keys and values"),
        (changed("jump_relu", "target_l0", "4"), "sae.target_l0: got '4'; expected a number, or null"),
        (changed("topk", "k", 9), "sae.k: got 9; expected at most n_latents, 8"),
        (changed("topk", "aux.k", 0), "sae.aux.k: got 0; expected an integer at least 1"),
        (changed("topk", "aux.weight", float("inf")), "sae.aux.weight: got inf; expected a number at least 0.0"),
    ],
)
def test_error_texts(content, text):
    with pytest.raises(InputError) as caught:
        from_plain(content, "sae")
    assert str(caught.value) == text


def test_an_integer_may_stand_for_a_number():
    content = to_plain(ONE_OF_EACH["jump_relu"])
    config = from_plain({**content, "target_l0": 3, "l0_weight": 2})
    assert (config.target_l0, config.l0_weight) == (3.0, 2.0)
    assert {type(config.target_l0), type(config.l0_weight)} == {float}


@dataclass(frozen=True)
class NewConfig:
    """A variant of tomorrow."""

    variant: Literal["new"]
    n_latents: int
    kernel: Literal["box", "hat"] = "box"
    name: str | None = None
    inputs: InputScaling = field(default_factory=InputScaling)


@dataclass(frozen=True)
class OddConfig:
    """A variant with a field that has no rule yet."""

    variant: Literal["odd"]
    sizes: set[int] = field(default_factory=set)


@pytest.mark.door
def test_a_new_variant_needs_no_change_but_a_new_type_does():
    kinds = TopKConfig | NewConfig | OddConfig
    config = NewConfig("new", 8, name="first", inputs=InputScaling(center=True))
    assert from_plain(asdict(config), kinds=kinds) == config
    with pytest.raises(InputError) as caught:
        from_plain({**asdict(config), "kernel": "bump"}, kinds=kinds)
    assert caught.value.argument == "config.kernel"
    with pytest.raises(TypeError, match="no rule how a file holds"):
        from_plain(asdict(OddConfig("odd")), kinds=kinds)
