"""What a comparison found, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from milora.comparison.beside import is_learning

SHOWN = ("validation_loss", "kl", "relative", "amplification", "phi_left_top", "phi_left_bottom")
NAMES = {"validation_loss": "validation loss", "kl": "KL", "relative": "|dW|/|W|"}


def tables(record: Mapping[str, Any]) -> Group:
    """Arms, differences, matched learning and checks of a comparison.json."""
    parts = [_arms(record), _failed(record), _against(record), _beside(record), _matched(record), _checks(record)]
    return Group(*(part for part in parts if part is not None))


def _arms(record: Mapping[str, Any]) -> Table:
    tasks = dict.fromkeys(m for arm in record["arms"] for m in arm["metrics"] if is_learning(m) and m not in SHOWN)
    metrics = [m for m in (*SHOWN, *tasks) if any(m in arm["metrics"] for arm in record["arms"])]
    made = _table("mean ± standard error over seeds", ["arm", "rate", "seeds", *(NAMES.get(m, m) for m in metrics)])
    for variant, base in record["base"].items():
        made.add_row(f"base{_at(variant)}", "", "", *(_value(base["metrics"].get(m)) for m in metrics))
        for arm in record["arms"]:
            if arm["variant"] == variant:
                rate = _number(arm["learning_rate"]) + ("" if arm["chosen"] else " (not chosen)")
                seeds = f"{len(arm['seeds'])} of {len(arm['seeds']) + len(arm['failed'])}"
                made.add_row(_name(arm), rate, seeds, *(_value(arm["metrics"].get(m)) for m in metrics))
    return made


def _failed(record: Mapping[str, Any]) -> Table | None:
    made = _table("failed runs", ["arm", "seed", "error"])
    for arm in record["arms"]:
        for seed in arm["failed"]:
            made.add_row(_name(arm), str(seed), Text(arm["errors"].get(str(seed), ""), style="red"))
    return made if made.row_count else None


def _against(record: Mapping[str, Any]) -> Table | None:
    level = record["settings"]["level"]
    made = _table(
        f"paired differences with {level:.0%} bootstrap intervals", ["arm", "against", "metric", "by seed", "by row"]
    )
    for arm in record["arms"]:
        for other, found in arm["against"].items():
            for metric, d in found.items():
                if metric == "kl" or is_learning(metric):
                    made.add_row(
                        _name(arm), other, NAMES.get(metric, metric), _difference(d), _difference(d.get("rows"))
                    )
    return made if made.row_count else None


def _beside(record: Mapping[str, Any]) -> Table | None:
    found = [(arm, other, two) for arm in record["arms"] for other, two in (arm.get("beside") or {}).items()]
    gains: list[str] = list(dict.fromkeys(metric for _, _, two in found for metric in two["gain_ratio"]))
    title = "trained numbers and gain over the base, as a ratio to another's"
    made = _table(title, ["arm", "beside", "trained", *(NAMES.get(m, m) for m in gains)])
    for arm, other, two in found:
        made.add_row(_name(arm), other, _number(two["footprint"]), *(_number(two["gain_ratio"].get(m)) for m in gains))
    return made if made.row_count else None


def _matched(record: Mapping[str, Any]) -> Table | None:
    made = _table("KL at equal validation loss", ["arms", "along", "loss", "KL", "KL", "ratio", "interval", "seeds"])
    for row in record["matched"]:
        arms = f"{row['a']} : {row['b']}{_at(row['variant'])}"
        if not row["comparable"]:
            made.add_row(arms, row["path"], row["reason"])
            continue
        made.add_row(
            arms, row["path"], f"{row['validation_loss']:.4f}", f"{row['kl_a']:.4f}", f"{row['kl_b']:.4f}",
            _number(row["ratio"]), _interval(row["interval"]), str(row["seeds"]),
        )  # fmt: skip
    return made if made.row_count else None


def _checks(record: Mapping[str, Any]) -> Table | None:
    made = _table("checks", ["check", "value", "limit", "result"])
    for check in record["checks"]:
        word, style = {True: ("passed", "green"), False: ("failed", "red"), None: ("not measured", "yellow")}[
            check["passed"]
        ]
        result = Text(word + ("" if check["gate"] else " (reported only)"), style=style if check["gate"] else "")
        made.add_row(Text(check["name"]), _number(check["value"]), f"{check['sense']} {check['limit']:g}", result)
    return made if made.row_count else None


def _table(title: str, header: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in header:
        made.add_column(name, overflow="fold")
    return made


def _name(arm: Mapping[str, Any]) -> str:
    return arm["label"] + _at(arm["variant"]) + ("" if arm["r"] is None else f" r{arm['r']}")


def _at(variant: str) -> str:
    return "" if variant == "base" else f"@{variant}"


def _value(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["mean"] is None:
        return "-"
    return _number(metric["mean"]) + ("" if metric["stderr"] is None else f" ± {metric['stderr']:.2g}")


def _difference(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['difference']:+.4g} {_interval(found['interval'])} n={found['n']}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
