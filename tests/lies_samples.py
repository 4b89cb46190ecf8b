"""Lies about arithmetic, data, counts and the columns of the samples."""

from __future__ import annotations

from typing import Any

from certificates import LOCAL, REAL, content, lies, recount

LIES, lie = lies()


@lie("read")
def another_arithmetic(c: dict[str, Any]) -> None:
    c["precision"]["arithmetic"] = "float64"


@lie("precision")
def rounding_that_was_not_counted(c: dict[str, Any]) -> None:
    c["precision"]["arithmetic"] = "real"


@lie("radii", **REAL)
def real_radii_called_executed(c: dict[str, Any]) -> None:
    c["precision"] = content()["precision"]


@lie("precision")
def an_assumption_dropped(c: dict[str, Any]) -> None:
    c["precision"]["assumptions"].pop()


@lie("data")
def other_data(c: dict[str, Any]) -> None:
    c["data"]["sha256"] = "1" * 64


@lie("data")
def another_data_set_s_name(c: dict[str, Any]) -> None:
    c["data"]["name"] = "mnist"


@lie("data")
def another_split(c: dict[str, Any]) -> None:
    c["data"]["split"] = "train"


@lie("read")
def another_number_of_samples(c: dict[str, Any]) -> None:
    c["data"]["samples"] += 1


@lie("data")
def a_sample_left_out(c: dict[str, Any]) -> None:
    c["data"]["samples"] -= 1
    for column in filter(None, c["samples"].values()):
        column.pop()
    for a in c["certified"]:
        a["verdict"].pop()
    recount(c)


@lie("sums")
def a_clean_count(c: dict[str, Any]) -> None:
    c["clean"]["count"] += 1


@lie("sums")
def a_clean_share(c: dict[str, Any]) -> None:
    c["clean"]["share"] = 1.0


@lie("sums")
def a_certified_count(c: dict[str, Any]) -> None:
    c["certified"][1]["count"] += 1


@lie("sums")
def a_certified_share(c: dict[str, Any]) -> None:
    c["certified"][1]["share"] = 1.0


@lie("sums")
def a_verdict(c: dict[str, Any]) -> None:
    c["certified"][1]["verdict"][0] = not c["certified"][1]["verdict"][0]


@lie("sums")
def another_epsilon(c: dict[str, Any]) -> None:
    c["certified"][-1]["epsilon"] = 99.0


@lie("read")
def an_epsilon_twice(c: dict[str, Any]) -> None:
    c["certified"].append(c["certified"][-1])


@lie("labels")
def a_label(c: dict[str, Any]) -> None:
    c["samples"]["label"][0] = c["samples"]["prediction"][0]
    recount(c)


@lie("read")
def a_label_of_no_class(c: dict[str, Any]) -> None:
    c["samples"]["label"][0] = 3


@lie("margins")
def a_prediction(c: dict[str, Any]) -> None:
    """With a margin and radii that would fit it."""
    columns = c["samples"]
    columns["prediction"][0], columns["runner_up"][0] = columns["runner_up"][0], columns["prediction"][0]
    recount(c)


@lie("margins")
def another_runner_up(c: dict[str, Any]) -> None:
    columns = c["samples"]
    a, b = columns["prediction"][0], columns["runner_up"][0]
    other = 3 - a - b
    columns["margin"][0] *= c["bound"]["value"][a][other] / c["bound"]["value"][a][b] * (1 + 1e-15)
    columns["runner_up"][0] = other


@lie("read")
def a_runner_up_that_is_the_prediction(c: dict[str, Any]) -> None:
    c["samples"]["runner_up"][0] = c["samples"]["prediction"][0]


@lie("margins")
def a_larger_margin(c: dict[str, Any]) -> None:
    """With the radii that follow from it."""
    for column in ("margin", "real_radius", "radius"):
        c["samples"][column][1] *= 1.001
    c["samples"]["margin"][1] *= 1 + 1e-15
    recount(c)


@lie("margins")
def a_smaller_margin(c: dict[str, Any]) -> None:
    for column in ("margin", "real_radius", "radius"):
        c["samples"][column][1] *= 0.9
    c["samples"]["margin"][1] *= 1 + 1e-15
    recount(c)


@lie("quotients", **REAL)
def a_larger_radius(c: dict[str, Any]) -> None:
    for column in ("real_radius", "radius"):
        c["samples"][column][1] *= 1 + 1e-12


@lie("quotients", **REAL)
def a_smaller_radius(c: dict[str, Any]) -> None:
    for column in ("real_radius", "radius"):
        c["samples"][column][1] *= 0.9
    recount(c)


@lie("quotients", **REAL)
def a_radius_below_its_real_one(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] *= 0.9999


@lie("radii")
def a_larger_executed_radius(c: dict[str, Any]) -> None:
    c["samples"]["radius"] = list(c["samples"]["real_radius"])
    recount(c)


@lie("radii")
def a_smaller_executed_radius(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] *= 0.99
    recount(c)


@lie("read")
def a_radius_above_the_real_one(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] = 1e6


@lie("local radii", **LOCAL)
def a_larger_local_radius(c: dict[str, Any]) -> None:
    columns = c["samples"]
    gains = [r / g if g else 0.0 for r, g in zip(columns["radius"], columns["global_radius"], strict=True)]
    n = max(range(len(gains)), key=gains.__getitem__)
    assert gains[n] > 1.02
    columns["radius"][n] *= 1.02
    recount(c)


@lie("local radii", **LOCAL)
def every_radius_said_to_be_local(c: dict[str, Any]) -> None:
    c["samples"]["radius"] = [2 * r + 0.01 for r in c["samples"]["radius"]]
    recount(c)


@lie("local radii", **LOCAL)
def a_local_radius_beyond_all_bounds(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] = 1e300
    recount(c)


@lie("local radii")
def radii_of_a_bound_said_to_be_local(c: dict[str, Any]) -> None:
    c["samples"]["global_radius"] = [r / 2 for r in c["samples"]["radius"]]
    c["samples"]["radius"] = [4 * r for r in c["samples"]["radius"]]
    recount(c)


@lie("radii", **LOCAL)
def a_larger_global_radius_beside_local_ones(c: dict[str, Any]) -> None:
    c["samples"]["global_radius"] = [
        min(r, s) for r, s in zip(c["samples"]["real_radius"], c["samples"]["radius"], strict=True)
    ]
    recount(c)


@lie("radii", **LOCAL)
def local_radii_without_saying_so(c: dict[str, Any]) -> None:
    c["samples"]["global_radius"] = None
    c["samples"]["radius"] = [
        min(r, s) for r, s in zip(c["samples"]["real_radius"], c["samples"]["radius"], strict=True)
    ]
    recount(c)


@lie("quotients", **LOCAL, **REAL)
def real_global_radii_that_are_none(c: dict[str, Any]) -> None:
    c["samples"]["global_radius"] = [r / 2 for r in c["samples"]["global_radius"]]


@lie("read", **LOCAL)
def a_local_radius_below_the_global_one(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] = c["samples"]["global_radius"][1] * (1 - 1e-12)
    recount(c)


@lie("read", **LOCAL)
def a_column_of_global_radii_too_short(c: dict[str, Any]) -> None:
    c["samples"]["global_radius"].pop()


@lie("read")
def a_negative_radius(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] = -0.1


@lie("read")
def a_column_too_short(c: dict[str, Any]) -> None:
    c["samples"]["radius"].pop()


@lie("read")
def a_key_too_many(c: dict[str, Any]) -> None:
    c["bound"]["trust"] = "me"


@lie("read")
def a_key_missing(c: dict[str, Any]) -> None:
    del c["precision"]


@lie("read")
def a_name_that_steers_a_terminal(c: dict[str, Any]) -> None:
    c["data"]["name"] = "mnist\x1b[2J\x1b[31m"
