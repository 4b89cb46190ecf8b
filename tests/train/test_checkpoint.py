"""Training states and weights on disk: what comes back, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import copy
import json
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lipcert.digests import digest
from lipcert.errors import CheckpointError
from lipcert.train import safefile
from lipcert.train.checkpoint import check_matches, load_state, load_weights, save_state, save_weights
from lipcert.train.state_tree import flatten, unflatten


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every bit."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*bits)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def round_trip(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    save_state(folder / "s.safetensors", state, {})
    return load_state(folder / "s.safetensors")[0]


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 1, 0, 1, 0]).to(dtype)
    state = {
        "vector": values,
        "scalar": values[1],
        "empty": values[:0],
        "transposed": values.reshape(2, 3).t(),
        "strided": values[::2],
    }
    assert same(state, round_trip(tmp_path, state))


def test_special_floats_survive(tmp_path: Path) -> None:
    nan = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, -0x80000000], dtype=torch.int32).view(torch.float32)
    state = {"t": nan, "plain": [math.inf, -math.inf, math.nan, -0.0, 5e-324, 2**70]}
    back = round_trip(tmp_path, state)
    assert same(state, back)
    assert math.copysign(1, back["plain"][3]) == -1


def test_channels_last_and_shared_storage_are_separated(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    state = {"cl": base.to(memory_format=torch.channels_last), "view": base[..., 1:], "same": base, "again": base}
    back = round_trip(tmp_path, state)
    assert same(state, back)
    assert len({t.untyped_storage().data_ptr() for t in back.values()}) == 4
    back["same"].zero_()
    assert back["again"].any()


def test_saving_takes_a_copy_and_leaves_the_state_alone(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(3))
    state = {"p": parameter, "list": [1]}
    tree, tensors = flatten(state)
    with torch.no_grad():
        parameter.zero_()
    assert same(unflatten(tree, tensors)["p"], torch.ones(3))
    assert not tensors["p"].requires_grad


def test_keys_keep_their_type_and_order(tmp_path: Path) -> None:
    state = {"b": {0: torch.zeros(1), "0": torch.ones(1), -1: 2}, "a/b": torch.zeros(2), "a": {"b": torch.ones(2)}}
    assert same(state, round_trip(tmp_path, state))


def test_reserved_names_do_no_harm(tmp_path: Path) -> None:
    state = {"__metadata__": torch.ones(2), "": torch.zeros(1), "tensor": {"dict": 1}, "x": {"tensor": "x"}}
    assert same(state, round_trip(tmp_path, state))


def test_ordered_dicts_come_back_as_dicts(tmp_path: Path) -> None:
    assert same(round_trip(tmp_path, {"o": OrderedDict(x=1)}), {"o": {"x": 1}})


def test_no_tensors_at_all(tmp_path: Path) -> None:
    state = {"step": 3, "nothing": {}, "none": None, "flag": True}
    assert same(state, round_trip(tmp_path, state))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.builds(torch.arange, st.integers(0, 3))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3), TREES, max_size=4))
def test_any_nested_state_survives_flattening(state: dict[str, Any]) -> None:
    tree, tensors = flatten(state)
    assert same(state, unflatten(json.loads(json.dumps(tree, allow_nan=False)), tensors))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_goes_on_exactly(tmp_path: Path, optimizer: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    opt = optimizer(net.parameters(), lr=0.1, **options)

    def step(module: nn.Module, o: torch.optim.Optimizer) -> None:
        o.zero_grad()
        module(torch.randn(8, 4)).square().sum().backward()
        o.step()

    step(net, opt)
    state = {"net": net.state_dict(), "opt": opt.state_dict(), "rng": torch.get_rng_state(), "step": 1}
    save_state(tmp_path / "c", state, {"epoch": 1})
    twin = copy.deepcopy(net)
    opt2 = optimizer(twin.parameters(), lr=0.5, **options)
    step(net, opt)

    back, header = load_state(tmp_path / "c")
    assert header == {"epoch": 1}
    twin.load_state_dict(back["net"])
    opt2.load_state_dict(back["opt"])
    torch.set_rng_state(back["rng"])
    step(twin, opt2)
    assert same(dict(net.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": {"b": object()}}, "a/b"),
        ({"a": [1, {2}]}, "a/1"),
        ({1.5: 1}, "1.5"),
        ({True: 1}, "True"),
        ({"s": torch.eye(2).to_sparse()}, "sparse"),
        ({"m": torch.empty(2, device="meta")}, "meta"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, state: dict[Any, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        save_state(tmp_path / "c", state, {})
    assert list(tmp_path.iterdir()) == []


def test_a_header_must_be_json(tmp_path: Path) -> None:
    for header in ({"t": torch.zeros(1)}, {"x": math.nan}):
        with pytest.raises(CheckpointError, match="plain JSON"):
            save_state(tmp_path / "c", {}, header)


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    save_state(tmp_path / "a" / "b" / "c.safetensors", {"x": torch.zeros(1)}, {})
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.safetensors"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights(tmp_path / "w", nn.Linear(2, 2))
        save_state(tmp_path / "s", {"x": 1}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    file = tmp_path / "c"
    save_state(file, {"x": torch.zeros(1)}, {})
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(CheckpointError, match="disk full"):
        save_state(file, {"x": torch.ones(9)}, {})
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_interruption_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c"
    save_state(file, {"x": 1}, {})

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_state(file, {"x": 2}, {})
    monkeypatch.undo()
    assert load_state(file)[0] == {"x": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot save"):
        save_state(tmp_path / "file" / "c", {}, {})
    with pytest.raises(CheckpointError, match="cannot save"):
        save_state(tmp_path, {}, {})


def saved(folder: Path) -> Path:
    save_state(folder / "c", {"w": torch.arange(100.0), "step": 3, "deep": [(1, None)]}, {"model": "mlp"})
    return folder / "c"


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    file = saved(tmp_path)
    data = file.read_bytes()
    for length in [*range(0, 40), *range(40, len(data), 41), len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="c is damaged"):
            load_state(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(file)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int) -> None:
    file = saved(tmp_path_factory.mktemp("flip"))
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_state(file)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        load_state(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_state(tmp_path)
    (tmp_path / "text").write_text("not a checkpoint, but longer than eight bytes")
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_state(tmp_path / "text")
    save_file({"w": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not written by lipcert"):
        load_state(tmp_path / "other")


def with_metadata(file: Path, **changes: str) -> None:
    """The file again with other metadata and a checksum that fits: not damage, but another content."""
    tensors, metadata = safefile.read_file(file)
    metadata.update(changes)
    checked = [metadata[key] for key in sorted(metadata) if key != "sha256"]
    metadata["sha256"] = digest(tensors, *checked)
    save_file(tensors, file, metadata=metadata)


def test_another_format_version(tmp_path: Path) -> None:
    file = saved(tmp_path)
    with_metadata(file, version="2")
    with pytest.raises(CheckpointError, match="format version '2', this lipcert reads '1'"):
        load_state(file)


@pytest.mark.parametrize(
    "tree",
    [
        "[",
        "3",
        "{}",
        '{"dict": 3}',
        '{"dict": [["w", {"tensor": "other"}]]}',
        '{"dict": [["w", {"tensor": ["w"]}]]}',
        '{"dict": [[null, 1], ["w", {"tensor": "w"}]]}',
        '{"dict": [["w", {"shell": "w"}]]}',
        '{"dict": []}',
        "[" * 100000,
    ],
)
def test_a_description_that_does_not_fit(tmp_path: Path, tree: str) -> None:
    file = saved(tmp_path)
    with_metadata(file, tree=tree)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(file)


def test_huge_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path)
    data = file.read_bytes()
    file.write_bytes((2**63 - 1).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match="header does not fit"):
        load_state(file)
    file.write_bytes(data)
    monkeypatch.setattr(safefile, "MAX_HEADER", 200)
    with pytest.raises(CheckpointError, match="header does not fit"):
        load_state(file)
    with pytest.raises(CheckpointError, match="put large lists of numbers into tensors"):
        save_state(file, {"numbers": list(range(1000))}, {})
    assert file.read_bytes() == data


def test_check_matches_lists_every_difference() -> None:
    header = {"config": {"lr": 0.1, "widths": [1, 2], "old": 1}, "model": "a", "saved": "yesterday", "flag": 1}
    check_matches(header, {"config": {"lr": 0.1, "widths": (1, 2), "old": 1}})
    with pytest.raises(CheckpointError) as caught:
        check_matches(header, {"config": {"lr": 0.2, "widths": [1], "new": 2}, "model": "a", "sha": "x", "flag": True})
    message = str(caught.value)
    for said in (
        "config.lr: 0.1 in the checkpoint, 0.2 here",
        "config.widths: [1, 2] in the checkpoint, [1] here",
        "config.new: absent in the checkpoint, 2 here",
        "config.old: 1 in the checkpoint, absent here",
        "sha: absent in the checkpoint",
        "flag: 1 in the checkpoint, True here",
    ):
        assert said in message
    assert "saved" not in message
    assert "model" not in message


def test_check_matches_does_not_print_a_book() -> None:
    with pytest.raises(CheckpointError, match="and 80 more"):
        check_matches({}, {str(i): i for i in range(100)})


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_weights_round_trip(tmp_path: Path) -> None:
    net, twin = network(), network().to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w", net, {"name": "example"})
    assert load_weights(tmp_path / "w", twin) == {"name": "example"}
    assert same(dict(net.state_dict()), dict(twin.state_dict()))
    assert set(load_file(tmp_path / "w")) == set(net.state_dict())  # others can read it
    wide = network().double()
    load_weights(tmp_path / "w", wide)
    assert torch.equal(wide[3].weight, net[3].weight.double())


def test_tied_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    save_weights(tmp_path / "w", net)
    load_weights(tmp_path / "w", net)
    assert net[1].weight is net[0].weight


def test_weights_from_elsewhere(tmp_path: Path) -> None:
    net, twin = network(), network()
    save_file(net.state_dict(), tmp_path / "w", metadata={"format": "pt"})
    assert load_weights(tmp_path / "w", twin) == {}
    assert same(dict(net.state_dict()), dict(twin.state_dict()))


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(8, 3))
    save_weights(tmp_path / "w", other)
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path / "w", net)
    for said in (
        "missing in the file: 7 (first: 1.weight)",
        "not in the module: 2 (first: 2.bias)",
        "0.weight has shape (2, 1, 5, 5), the module's (2, 1, 3, 3)",
    ):
        assert said in str(caught.value)
    assert same(dict(before), dict(net.state_dict()))


def test_weights_are_not_rounded_silently(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", nn.Linear(2, 2).double())
    with pytest.raises(CheckpointError, match="cannot hold it exactly"):
        load_weights(tmp_path / "w", nn.Linear(2, 2))


def test_weights_and_states_are_told_apart(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", network())
    save_state(tmp_path / "s", {"w": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="load it with load_weights"):
        load_state(tmp_path / "w")
    with pytest.raises(CheckpointError, match="load it with load_state"):
        load_weights(tmp_path / "s", network())


def test_damaged_weights(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", network())
    data = bytearray((tmp_path / "w").read_bytes())
    data[-1] ^= 1
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_weights(tmp_path / "w", network())
