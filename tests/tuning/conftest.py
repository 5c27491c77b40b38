"""Make the many short trainings of these tests cheaper."""

import pytest

from comp.results import plots


@pytest.fixture(autouse=True)
def without_learning_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip a run's learning curves, which take longer to draw than a trial to train; tests/results draws them."""
    monkeypatch.setattr(plots, "draw_curves", lambda *args, **options: None)
