"""Print the shift card."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from comp.cli.console.output import print_line, print_note, print_table, print_text

if TYPE_CHECKING:
    from comp.data.corruptions.recognise import Verdict
    from comp.results.analysis import Agreement
    from comp.workflows.shift import ShiftCard

_SHOWN_IDS = 3
_NAMES = {"train": "training", "val": "validation"}  # of the compared images


def print_shift(card: "ShiftCard") -> None:
    """Print what differs first, what the blocks look like, and what to change."""
    for note in card.notes:
        print_note(f"note: {note}")
    interval, reference = card.auc.interval, _NAMES[card.reference]
    print_text(
        f"{reference} and {card.test}: {card.meaning}, AUC {card.auc.value:.3f} "
        f"({interval.low:.3f} to {interval.high:.3f}; 0.5: alike)"
    )
    images = f"{card.counts[0]:,} {reference} and {card.counts[1]:,} {card.test} images"
    unseen = ", which has not seen them" if card.reference == "val" else ""
    print_text(f"compared: {images} by {card.features}{unseen}")
    ids = ", ".join(f"{name} ({score:.2f})" for name, score in card.test_like[:_SHOWN_IDS])
    print_text(f"training images most like {card.test} (probability): {ids}")
    _print_properties(card)
    _print_blocks(card)
    _print_agreements(card.agreements, card.scored)
    for suggestion in card.suggestions:
        print_line(f"suggested: {suggestion.key}={_flow(suggestion.value)}")
        print_text(f"  {suggestion.reason}")
    if not card.suggestions:
        print_line("suggested: nothing")


def _print_properties(card: "ShiftCard") -> None:
    differing = [row for row in card.properties if row.word != "same"]
    if differing:
        cells = [
            (row.name, f"{row.train:.4g}", f"{row.test:.4g}", _signed(row.difference), f"{row.distance:.2f}", row.word)
            for row in differing
        ]
        print_table(("property", _NAMES[card.reference], card.test, "in SDs", "KS", "difference"), cells)
    if alike := [row.name for row in card.properties if row.word == "same"]:
        print_text(f"the same within chance: {', '.join(alike)}")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _print_blocks(card: "ShiftCard") -> None:
    if not card.verdicts:
        return
    lines = []
    for (_, name), group in groupby(card.verdicts.items(), lambda item: (item[0].rpartition("_")[0], item[1].name)):
        rows = list(group)
        verdicts = [verdict for _, verdict in rows]
        first, last = rows[0][0], rows[-1][0].rpartition("_")[2]
        severities = [str(verdict.severity) for verdict in verdicts if verdict.severity]
        blocks = first if len(rows) == 1 else f"{first} to {last}"
        lines.append((blocks, name, ", ".join(severities), _shares(verdicts), _alternative(verdicts)))
    print_table(("blocks", "look like", "severities", "share", "or"), lines, folded={"or": 12}, drop=("or",))
    right, tried = card.recognised
    print_text(f"share: of the likelihood; of {tried} held-out blocks of training images, {right} were recognised")


def _shares(verdicts: "Sequence[Verdict]") -> str:
    shares = [verdict.share for verdict in verdicts]
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    if not max(shares):
        return ""
    return low if low == high else f"{low} to {high}"


def _alternative(verdicts: "Sequence[Verdict]") -> str:
    """Return what else the least certain block may be: parts of a mixture, or the likeliest other corruption."""
    least = min(verdicts, key=lambda verdict: verdict.share)
    if least.name == "a mixture":
        return ", ".join(f"{name} {share:.0%}" for name, share in least.mixture.items())
    likeliest, share = next(iter(least.shares.items()))
    if likeliest != least.name:  # which explains too little of the difference from training images
        return f"nearest: {likeliest}" if least.share < share else ""
    others = {name: share for name, share in least.shares.items() if name != least.name and share >= 0.01}
    return next((f"{name} {share:.2f}" for name, share in others.items()), "")


def _print_agreements(agreements: "Sequence[Agreement]", scored: int) -> None:
    for row in agreements:
        low, high = row.interval.low, row.interval.high
        trust = "too weak to trust: it may be 0" if 0 in row.interval else "validation ranks as the leaderboard does"
        if high < 0:
            trust = "validation ranks against the leaderboard"
        print_text(
            f"{row.column} and public score of {row.count} submissions: rank correlation {row.correlation:.2f} "
            f"({low:.2f} to {high:.2f}), {trust}"
        )
    if not agreements:
        print_text(f"validation and public scores: {scored} recorded, too few to compare (4): comp leaderboard record")


def _flow(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
